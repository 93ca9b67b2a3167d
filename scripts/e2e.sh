#!/usr/bin/env bash
# The e2e tests: on the cluster of `make e2e-up`, or on another one that RLJOB_E2E_KUBECONFIG names, once confirmed.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -n "${RLJOB_E2E_KUBECONFIG:-}" && "${RLJOB_E2E_YES:-}" != 1 ]]; then
  context=$(kubectl --kubeconfig "$RLJOB_E2E_KUBECONFIG" config current-context)
  server=$(kubectl --kubeconfig "$RLJOB_E2E_KUBECONFIG" config view --minify -o jsonpath='{.clusters[0].cluster.server}')
  echo "The tests apply RLJob's definitions, install an operator with cluster-wide rights and create namespaces on:"
  echo "  context $context, server $server"
  if [[ ! -t 0 ]]; then
    echo "error: nobody is there to confirm that; set RLJOB_E2E_YES=1" >&2
    exit 1
  fi
  read -rp "Type the context's name to go on: " answer
  [[ "$answer" == "$context" ]] || { echo "error: not confirmed, nothing was done" >&2; exit 1; }
  export RLJOB_E2E_YES=1
fi
exec .venv/bin/python -m pytest -v -m "cluster and not nightly" e2e "$@"
