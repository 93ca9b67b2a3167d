#!/usr/bin/env bash
# Every test: those without a cluster first, since they fail sooner, then a real apiserver, Helm, and whole jobs.
set -euo pipefail
cd "$(dirname "$0")/.."
py=.venv/bin/python
local="not cluster and not helm and not gpu"
# These start an operator of their own and play KubeRay: a control plane alone, where no other acts on their objects.
apiserver="operator/tests trainer/tests/cluster e2e/tests/test_bad_manifests.py e2e/tests/test_cli_on_cluster.py"

stage() { printf '\n=== %s (%d s so far)\n' "$1" "$SECONDS"; }
cleanup() { $py -m e2e.cluster down || true; }

stage "quick tests"
$py -m pytest -q -n 2 --dist loadfile -m "not slow and $local"

stage "slow tests"
# They start Ray and train. Two files at a time (a start-up waits more than it computes), in conftest.py's order.
$py -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "slow and $local" --durations=10

trap cleanup EXIT
stage "faults between the operator and the apiserver"
# On a control plane of their own, which pytest brings up and takes away: they play KubeRay and kubelet themselves.
$py -m pytest -q -m cluster e2e/faults --durations=5

stage "the API and the operator on a real apiserver"
# shellcheck disable=SC2086 - a list of paths
$py -m pytest -q -m cluster $apiserver --durations=5

stage "jobs in a queue of Kueue"
# With KubeRay, scheduler and Kueue on a control plane of their own, and nodes that kwok plays.
$py -m pytest -q -m cluster e2e/kueue --durations=5

stage "the cluster"
$py -m e2e.cluster up
eval "$($py -m e2e.cluster env)"

stage "Helm"
$py -m pytest -q -m "helm and not cluster"

stage "images"
$py -m images.build --load

stage "jobs on the real cluster"
$py -m pytest -v -m cluster e2e --durations=20 \
  --ignore=e2e/faults --ignore=e2e/kueue --ignore=e2e/tests/test_bad_manifests.py --ignore=e2e/tests/test_cli_on_cluster.py
stage "done"
