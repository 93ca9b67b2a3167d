#!/usr/bin/env bash
# The fault suite in full: the operator killed at every write, and every fault of e2e/faults, on a control plane alone.
# Arguments go to `python -m e2e.faults` (--story suspend, --sample 100 --seed 3, ...).
set -euo pipefail
cd "$(dirname "$0")/.."
py=.venv/bin/python
export RLJOB_CLUSTER_INDEX=${RLJOB_CLUSTER_INDEX:-60}

trap '$py -m e2e.cluster down || true' EXIT
$py -m e2e.cluster up --control-plane-only
RLJOB_FAULTS=all $py -m pytest -v -m cluster e2e/faults --deselect e2e/faults/test_kill.py
$py -m e2e.faults "$@"
