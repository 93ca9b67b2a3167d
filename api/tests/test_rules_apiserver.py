"""Both languages of a rule agree: what Python says of a manifest is what a real apiserver says by the rule's CEL."""

import copy
import importlib.util
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rljob_api.codegen.crd import schema
from rljob_api.rules.checks import RULES
from rljob_api.rules.rule import PythonRule, Rule, objects, text_of
from rljob_api.v1alpha1.job import API_VERSION, KIND, RLJob

from e2e.conftest import installed_crd, kubeconfig  # noqa: F401 - fixtures
from e2e.support.kubectl import Kubectl
from e2e.tests.corpus import cases, changed, good

pytestmark = pytest.mark.cluster
Refusals = Counter[tuple[str, str]]
"""Fields, and what is said of each."""
UNCHECKED = "some validation rules were not checked"
"""The apiserver asks no rule of an object that breaks the schema."""

_path = Path(__file__).with_name("schema_strategy.py")
_spec = importlib.util.spec_from_file_location("schema_strategy", _path)
assert _spec
assert _spec.loader
_module = importlib.util.module_from_spec(_spec)
sys.modules["schema_strategy"] = _module
_spec.loader.exec_module(_module)

SECTIONS: list[dict[str, Any]] = [
    {"spec.mode": "Evaluate"},
    {"spec.mode": "Generate"},
    {"spec.algorithm.type": "sft"},
    {"spec.algorithm.advantageEstimator": "rloo", "spec.rollout.nSamplesPerPrompt": 1},
    {"spec.placement.type": "colocated"},
    {"spec.trainer.backend": "megatron"},
    {"spec.rollout.engine": "sglang"},
    {"spec.trainer.gpusPerReplica": 6, "spec.rollout.gpusPerEngine": 1},
    {"spec.trainer.globalBatchSize": 24, "spec.trainer.numStepsPerRollout": None},
    {"spec.evaluation": None},
    {"spec.retriever": None},
    {"spec.reward": None},
    {"spec.data": None},
    {"spec.sft": None},
]
"""Changes under which other rules apply than to the corpus' good manifests."""


def manifest(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "any"}, "spec": spec}


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    """A good manifest with several of the corpus' mistakes at once."""
    job: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(GOOD)))
    job["spec"] |= draw(st.sampled_from(MISTAKEN))
    for section in draw(st.lists(st.sampled_from(MISTAKEN), max_size=3)):
        name = draw(st.sampled_from(sorted(section)))
        job["spec"][name] = section[name]
    for change in draw(st.lists(st.sampled_from(SECTIONS), max_size=3)):
        job = changed(job, {path: value for path, value in change.items() if path.split(".")[1] in job["spec"]})
    return job


def readable(job: dict[str, Any]) -> RLJob | None:
    """The job as the models read it; None where they refuse a single field."""
    try:
        return RLJob.model_validate(job)
    except ValueError:
        return None


GOOD = [good("cpu"), good("gpu")]
PLAUSIBLE = [case for case in cases() if readable(case.manifest)]
MISTAKEN: list[dict[str, Any]] = [case.manifest["spec"] for case in PLAUSIBLE]
COMPILED = [
    (rule, rule.holds(), validation)
    for rule in RULES
    if not isinstance(rule, PythonRule) and (validation := rule.validation())
]


def said_by_python(job: RLJob) -> Refusals:
    """What the rules that the CRD has say of the job, whether or not Python asks them of such a job."""
    found: Refusals = Counter()
    for rule, holds, validation in COMPILED:
        for path, owner in objects(job.spec, rule.at):
            if not holds.value(owner):
                said = rule.admission_says or (text_of(rule.says, owner) if isinstance(rule, Rule) else "")
                found[f"{path}.{validation.field_path}".rstrip("."), said] += 1
    return found


@pytest.fixture(scope="module")
def url(installed_crd: Kubectl) -> Iterator[str]:  # noqa: F811
    """Where a manifest is created on trial."""
    command = ["kubectl", "--kubeconfig", installed_crd.kubeconfig, "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        address = proxy.stdout.readline().split()[-1]  # "Starting to serve on 127.0.0.1:41234"
        yield f"http://{address}/apis/{API_VERSION}/namespaces/default/rljobs?dryRun=All"
        proxy.terminate()


def said_by_apiserver(url: str, job: dict[str, Any]) -> Refusals | None:
    """What CEL says of the job; None where it was not asked."""
    request = urllib.request.Request(url, json.dumps(job).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return Counter()
    except urllib.error.HTTPError as refused:
        answer = json.loads(refused.read())
    if UNCHECKED in answer["message"]:
        return None
    assert answer["reason"] == "Invalid", answer
    # Names that stand twice are refused by the schema, beside the rules.
    causes = [cause for cause in answer["details"]["causes"] if cause["reason"] != "FieldValueDuplicate"]
    return Counter((cause["field"], words(cause["message"])) for cause in causes)


def words(message: str) -> str:
    """The rule's own part of `Invalid value: "object": 8 is below batchSize 16`."""
    said = re.fullmatch(r'(?:Required value|Invalid value: "[a-z]+"): (.*)', message, re.DOTALL)
    assert said, message
    return said[1]


def agree(url: str, job: dict[str, Any]) -> bool:
    """Whether both were asked; fails where they differ."""
    read = readable(job)
    if read is None:
        return False
    if job["spec"].get("trainer", {}).get("megatronArgs") == {}:
        del job["spec"]["trainer"]["megatronArgs"]  # Python takes an empty one for none; CEL cannot measure it.
    said = said_by_apiserver(url, job)
    if said is None:
        return False
    assert said_by_python(read) == said
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=_module.values(schema()["properties"]["spec"]))
def test_any_manifest_is_judged_alike(url: str, spec: dict[str, Any]) -> None:
    assume(agree(url, manifest(spec)))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(job=mixtures())
def test_mistakes_together_are_judged_alike(url: str, job: dict[str, Any]) -> None:
    assume(agree(url, job))


def test_each_mistake_of_the_corpus_is_judged_alike(url: str) -> None:
    judged = [case.id for case in PLAUSIBLE if agree(url, case.manifest)]
    assert len(judged) > 60
