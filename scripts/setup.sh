#!/usr/bin/env bash
# Make .venv with the locked dependencies. Finds a Python 3.12 or 3.13 and uv, or says what to install.
# `setup.sh --operator` makes .venv-operator instead: operator, API and CLI with their tests, without torch (0.2 GB).
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.8
venv=.venv
wanted=(--extra operator --extra retriever --extra trainer --extra tracking --group parity)
if [ "${1:-}" = --operator ]; then
  shift
  venv=.venv-operator
  wanted=(--extra operator)
fi
CACHE=${RLJOB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rljob}

works() { "$1" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; }

find_python() {
  local candidate root
  for candidate in "${RLJOB_PYTHON:-}" python3.12 python3.13 python3; do
    [ -n "$candidate" ] && works "$candidate" && { command -v "$candidate"; return 0; }
  done
  # pyenv's shims refuse a version that is installed but not selected; its folder holds the real one.
  for root in "${PYENV_ROOT:-}" "$HOME/.pyenv"; do
    for candidate in "$root"/versions/3.12*/bin/python3 "$root"/versions/3.13*/bin/python3; do
      [ -x "$candidate" ] && works "$candidate" && { echo "$candidate"; return 0; }
    done
  done
  return 1
}

find_uv() {
  local candidate any
  for candidate in "${RLJOB_UV:-}" uv "$CACHE/uv-$UV_VERSION/bin/uv"; do
    [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1 && { command -v "$candidate"; return 0; }
  done
  any=$(find_python || command -v python3) || { echo "rljob: no python3 on this machine; install one (apt-get install python3 python3-venv)" >&2; return 1; }
  if ! "$any" -m venv "$CACHE/uv-$UV_VERSION" >/dev/null 2>&1; then
    echo "rljob: $any cannot make a virtual environment; install its venv module (apt-get install python3-venv)" >&2
    return 1
  fi
  "$CACHE/uv-$UV_VERSION/bin/python" -m pip install -q --disable-pip-version-check "uv==$UV_VERSION" >&2
  echo "$CACHE/uv-$UV_VERSION/bin/uv"
}

mkdir -p "$CACHE"
uv=$(find_uv)
if [ ! -x "$venv/bin/python" ] || ! works "$venv/bin/python"; then
  if python=$(find_python); then
    "$uv" venv -q --python "$python" "$venv"
  elif ! "$uv" venv -q --python 3.12 "$venv"; then
    echo "rljob: needs Python 3.12 or 3.13, and none was found or could be fetched; install one (apt-get install python3.12, pyenv install 3.12, or set RLJOB_PYTHON=/path/to/python3.12)" >&2
    exit 1
  fi
fi
# Compiled now: else each process that starts reads sources anew where PYTHONDONTWRITEBYTECODE is set.
export UV_PROJECT_ENVIRONMENT=$venv
exec "$uv" sync -q --frozen --compile-bytecode "${wanted[@]}" "$@"
