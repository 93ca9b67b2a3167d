#!/usr/bin/env bash
# The fault suite in full: the operator killed at every write, and every fault of e2e/faults, on a control plane alone.
# Arguments go to `python -m e2e.faults` (--story suspend, --sample 100 --seed 3, ...).
set -euo pipefail
cd "$(dirname "$0")/.."
py=.venv/bin/python
cleanup() { $py -m e2e.cluster down || true; }

if [[ -z "${KUBECONFIG:-}" ]]; then
  trap cleanup EXIT
  $py -m e2e.cluster up --control-plane-only
  eval "$($py -m e2e.cluster env)"
fi
RLJOB_FAULTS=all $py -m pytest -v -m cluster e2e/faults --deselect e2e/faults/test_kill.py
$py -m e2e.faults "$@"
