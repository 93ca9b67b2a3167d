# `make demo` and `make test` do all their own set-up. `make help` lists the rest.
SHELL := /bin/bash
PY := .venv/bin/python
export OMP_NUM_THREADS ?= 1
export RAY_DISABLE_IMPORT_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-operator demo test test-fast test-nightly test-operator lint types generate bench faults chaos scale \
  e2e-up e2e e2e-down images clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: .venv/.synced  ## Make .venv with the locked dependencies (leaves .venv/bin/rljob working)

.venv/.synced: pyproject.toml uv.lock scripts/setup.sh
	@echo "setup: installing the locked dependencies (about 6 GB, most of it torch)"
	@scripts/setup.sh
	@touch $@

setup-operator: .venv-operator/.synced  ## Make .venv-operator: operator, API and CLI with their tests, without torch

.venv-operator/.synced: pyproject.toml uv.lock scripts/setup.sh
	@scripts/setup.sh --operator
	@touch $@

test-operator: setup-operator  ## Quick tests of operator, API, CLI, images and charts, without torch (under 3 minutes)
	scripts/test_operator.sh $(ARGS)

demo: setup  ## Run the quickstart: retriever, rollout and training on a local Ray, report at the end
	.venv/bin/rljob run examples/quickstart.yaml --dir runs/quickstart --fresh

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

types: setup
	$(PY) -m mypy

test-fast: setup lint types  ## Lint, types and the quick tests (under 3 minutes)
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow and not cluster and not helm and not gpu and not nightly"

test: setup  ## Everything, or PART=quick|slow|faults|apiserver|kueue|helm|images|jobs
	$(PY) scripts/test.py

test-nightly: setup  ## What is too long for every change: long runs, a kill at every write, chaos (hours)
	$(PY) scripts/test.py --nightly

generate: setup  ## Rewrite what is generated from the models: CRD, chart copy, API docs
	scripts/generate.sh

bench: setup  ## Benchmarks as JSON lines, kept under benchmarks/results/
	$(PY) -m benchmarks

faults: setup  ## Kill the operator at every write of every lifecycle, on a control plane of its own (root; long)
	scripts/faults.sh $(ARGS)

chaos: setup  ## Kill what a job relies on, on a real cluster such as that of e2e-up (about 45 minutes)
	$(PY) -m pytest -v -s -m cluster e2e/tests/test_rljob_chaos.py e2e/tests/test_rljob_chaos_all.py \
	  e2e/tests/test_rljob_preemption.py $(ARGS)

scale: setup  ## RLJobs by the thousand beside bare RayJobs, as JSON lines (root; about 30 minutes)
	$(PY) -m benchmarks.scale

images: setup  ## Build the container images with buildah, podman or docker
	$(PY) -m images.build

e2e-up: setup  ## Bring up a real cluster on this machine (root; Debian), with KubeRay and our images
	$(PY) -m e2e.cluster up
	$(PY) -m images.build --load

e2e: setup  ## Run the e2e against it, or another cluster: RLJOB_E2E_KUBECONFIG=FILE make e2e (asks first)
	scripts/e2e.sh $(ARGS)

e2e-down: setup  ## Take that cluster away
	$(PY) -m e2e.cluster down

clean:  ## Remove what runs and tests left in the checkout
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
