#!/usr/bin/env bash
# A commit's subject has at most 72 characters, and an empty line follows it: check_subject.sh FILE (the message).
set -euo pipefail
export LC_ALL=C.UTF-8

subject=$(sed -n 1p "$1")
if ((${#subject} > 72)); then
  echo "error: the commit's subject has ${#subject} characters, 72 are the limit; say why in the body: $subject" >&2
  exit 1
fi
if [[ -n "$(sed -n 2p "$1" | grep -v '^#' || true)" ]]; then
  echo "error: the second line of a commit's message is empty; the body begins on the third" >&2
  exit 1
fi
