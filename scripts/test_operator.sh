#!/usr/bin/env bash
# The quick tests of everything but the trainer, in an environment that holds what the operator holds: no torch.
set -euo pipefail
cd "$(dirname "$0")/.."
py=.venv-operator/bin/python

for module in torch ray transformers; do
  if $py -c "import $module" 2>/dev/null; then
    echo "rljob: .venv-operator has $module, so these tests would prove nothing; remove the folder and try again" >&2
    exit 1
  fi
done
# `rljob convert` works on tensors: its tests, and a comparison with transformers' own count (marked slow), stay out.
exec $py -m pytest -q -n 2 --dist loadfile -m "not slow and not cluster and not helm and not gpu and not nightly" \
  api/tests operator/tests cli/tests images/tests charts/tests e2e --ignore=cli/tests/test_cli_convert.py "$@"
