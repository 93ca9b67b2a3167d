"""The real apiserver refuses every bad manifest of the corpus, in the words that the corpus asks for."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.support.kubectl import Kubectl, KubectlError
from e2e.tests.corpus import ACCEPTED, Case, cases, changed, good, mutations

pytestmark = pytest.mark.cluster


def create(kubectl: Kubectl, manifest: dict[str, Any], *flags: str) -> None:
    kubectl("create", "--validate=strict", *flags, "-f", "-", stdin=json.dumps(manifest))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_admission_says_what_is_wrong(installed_crd: Kubectl, case: Case) -> None:
    if case.api == ACCEPTED:
        create(installed_crd, case.manifest, "--dry-run=server")
        return
    with pytest.raises(KubectlError) as refused:
        create(installed_crd, case.manifest, "--dry-run=server")
    assert case.api in refused.value.stderr


@pytest.mark.parametrize("base", ["cpu", "gpu"])
def test_admission_lets_good_manifests_pass(installed_crd: Kubectl, base: str) -> None:
    create(installed_crd, good(base), "--dry-run=server")


def test_admission_lets_a_custom_estimator_do_with_one_sample_of_a_prompt(installed_crd: Kubectl) -> None:
    alone = {"spec.rollout.nSamplesPerPrompt": 1, "spec.trainer.numStepsPerRollout": 1}
    custom = {"spec.algorithm.customAdvantages": {"function": "mine:advantages", "args": {"any": [1, {"b": None}]}}}
    create(installed_crd, changed(good("cpu"), alone | custom), "--dry-run=server")
    with pytest.raises(KubectlError, match="grpo compares the samples of a prompt"):
        create(installed_crd, changed(good("cpu"), alone), "--dry-run=server")


@pytest.fixture(scope="module")
def started(installed_crd: Kubectl) -> Iterator[tuple[Kubectl, dict[str, Any]]]:
    """A job whose first attempt has started, in a namespace without an operator's attention."""
    namespace = f"mutation-{uuid.uuid4().hex[:8]}"
    kubectl = Kubectl(installed_crd.kubeconfig, namespace)
    kubectl("create", "namespace", namespace)
    manifest = good("cpu")
    create(kubectl, manifest)
    set_attempt(kubectl, manifest["metadata"]["name"], 1)
    yield kubectl, manifest
    kubectl("delete", "rljob", manifest["metadata"]["name"], "--wait=false")
    kubectl("delete", "namespace", namespace, "--wait=false")


def set_attempt(kubectl: Kubectl, name: str, attempt: int) -> None:
    patch = json.dumps({"status": {"attempt": attempt, "phase": "Running"}})
    kubectl("patch", "rljob", name, "--subresource=status", "--type=merge", "-p", patch)


def replace(kubectl: Kubectl, manifest: dict[str, Any]) -> None:
    kubectl("replace", "--validate=strict", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))


@pytest.mark.parametrize("case", mutations(), ids=lambda case: case["id"])
def test_a_started_job_is_not_changed(started: tuple[Kubectl, dict[str, Any]], case: dict[str, Any]) -> None:
    kubectl, manifest = started
    with pytest.raises(KubectlError) as refused:
        replace(kubectl, changed(manifest, case["set"]))
    assert case["says"] in refused.value.stderr
    assert case["and"] in refused.value.stderr


@pytest.mark.parametrize("case", mutations("allowed-mutations"), ids=lambda case: case["id"])
def test_a_started_job_can_be_suspended_scaled_and_limited(
    started: tuple[Kubectl, dict[str, Any]], case: dict[str, Any]
) -> None:
    kubectl, manifest = started
    replace(kubectl, changed(manifest, case["set"]))


def test_a_started_job_is_scaled_and_its_status_written(started: tuple[Kubectl, dict[str, Any]]) -> None:
    kubectl, manifest = started
    name = manifest["metadata"]["name"]
    kubectl("scale", "rljob", name, "--replicas=3")
    assert kubectl.get("rljob", name)["spec"]["rollout"]["replicas"] == 3
    set_attempt(kubectl, name, 2)
    columns = kubectl("get", "rlj", name)
    assert columns.split("\n")[0].split() == ["NAME", "PHASE", "STEP", "REWARD", "TOK/S", "ATTEMPT", "AGE"]


def test_a_job_that_has_not_started_can_be_corrected(installed_crd: Kubectl) -> None:
    manifest = good("cpu") | {"metadata": {"name": f"new-{uuid.uuid4().hex[:8]}"}}
    create(installed_crd, manifest)
    try:
        installed_crd("apply", "-f", "-", stdin=json.dumps(changed(manifest, {"spec.rollout.batchSize": 32})))
    finally:
        installed_crd("delete", "rljob", manifest["metadata"]["name"], "--wait=false")


def test_defaults_are_those_of_the_models(installed_crd: Kubectl) -> None:
    from rljob_api.manifest.load import loads

    manifest = good("cpu")
    answer = installed_crd("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(manifest))
    assert loads(answer).spec == loads(json.dumps(manifest)).spec


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("rljob.spec.rollout", ["Prompts per rollout.", "Default: 16.", "enum: torch, sglang"]),
        ("rljob.spec.trainer.parallelism", ["Tensor parallel size (TP).", "Default: 1."]),
        ("rljob.spec.checkpoint.saveInterval", ["Rollouts between commits"]),
        ("rljob.status", ["Optimizer steps trained"]),
    ],
)
def test_explain_reads_like_documentation(installed_crd: Kubectl, path: str, texts: list[str]) -> None:
    page = " ".join(installed_crd("explain", path).split())
    for text in texts:
        assert text in page
    assert "<no description>" not in page
