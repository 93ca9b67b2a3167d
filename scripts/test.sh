#!/usr/bin/env bash
# Every test: those without a cluster first, since they fail sooner, then Helm and the real cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
py=.venv/bin/python

$py -m pytest -q -n 2 --dist loadfile -m "not slow and not cluster and not helm and not gpu"
# Slow tests start Ray and train: one at a time, so that two cores are not shared by several.
$py -m pytest -q -m "slow and not cluster and not helm and not gpu" --durations=10

cleanup() { $py -m e2e.cluster down || true; }
trap cleanup EXIT
$py -m e2e.cluster up
eval "$($py -m e2e.cluster env)"
$py -m pytest -q -m "helm and not cluster"
$py -m images.build --load
$py -m pytest -v -m "cluster" e2e operator/tests --durations=20
