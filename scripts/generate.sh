#!/usr/bin/env bash
# Rewrites what is generated from the models and the commands. A test fails when any of it is stale.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python

write() {  # write MODULE FILE: through a temporary file, so that a failure leaves the old one
  local new
  new=$(mktemp)
  "$python" -m "$1" >"$new"
  mkdir -p "$(dirname "$2")"
  cat "$new" >"$2"
  rm -f "$new"
}

write rljob_api.codegen.crd crds/rljobs.yaml
write rljob_api.codegen.crd charts/rljob/charts/rljob-crds/crd/rljobs.yaml
write rljob_api.codegen.api_reference docs/api.md
write rljob_cli.docs docs/cli.md
write rljob_cli.metrics_docs docs/metrics.md
"$python" -m charts.dashboards
