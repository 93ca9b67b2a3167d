#!/usr/bin/env bash
# Fails when a generated file differs from what the last commit holds; the fresh one is then in the working tree.
# Which files are generated is in .gitattributes.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -d '' -t generated < <(git ls-files -z ':(attr:linguist-generated)')
scripts/generate.sh
if ! git diff --quiet HEAD -- "${generated[@]}"; then
  echo "error: generated files were stale; commit what is fresh now:" >&2
  git diff --name-only HEAD -- "${generated[@]}" >&2
  exit 1
fi
