"""A field that the trainer alone reads is one edit of a model: CRD, reference, document and reading follow from it."""

import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rljob
import rljob_api
import rljob_operator
from rljob_api.contract.job_document import VERSION

ROOT = Path(__file__).parents[2]
MODEL = "rljob_api/v1alpha1/algorithm.py"
BEFORE = "    custom_advantages: "
FIELD = f'''    novelty: Annotated[Fraction, Since("{VERSION}")] = 0.25
    """Weight of what has not been seen."""
'''
# What the copy says of the field, from the operator's hand to the driver's.
PROGRAM = """
import json, sys
from pathlib import Path
from rljob_api.codegen.api_reference import api_reference
from rljob_api.codegen.crd import crd_yaml, schema
from rljob_api.contract.job_document import MANIFEST_KEY, load_document, must_understand
from rljob_api.errors import ManifestError
from rljob_api.manifest.load import load
from rljob_operator.resources.config_maps import config
from rljob_operator.resources.context import Context
from rljob_operator.settings import Settings

def written(novelty):
    file = Path("job.json")
    file.write_text(json.dumps({
        "apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "demo"},
        "spec": {"model": {"path": "m"}, "data": {"train": {"path": "p"}},
                 "reward": {"functions": [{"name": "em"}]}, "algorithm": novelty},
    }))
    job = load(file)
    document = config(Context(job, "team", "u-1", Settings()))["data"][MANIFEST_KEY]
    Path(MANIFEST_KEY).write_text(document)
    read = load_document(MANIFEST_KEY)
    return {
        "document": json.loads(document)["spec"].get("algorithm", {}),
        "must": list(must_understand(job.spec, ("spec",))),
        "read": read.spec.algorithm.novelty,
    }

try:
    refused = written({"novelty": 1.5})
except ManifestError as error:
    refused = error.message
root = schema()
print(json.dumps({
    "crd": crd_yaml(), "reference": api_reference(), "set": written({"novelty": 0.5}), "default": written({}),
    "refused": refused, "held": [r["fieldPath"] for r in root["x-kubernetes-validations"] if "fieldPath" in r],
}))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a copy of the packages says, the field added to it."""
    copy = tmp_path_factory.mktemp("product")
    for package in (rljob, rljob_api, rljob_operator):
        source = Path(package.__file__ or "").parent
        shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / MODEL).read_text()
    assert text.count(BEFORE) == 1
    (copy / MODEL).write_text(text.replace(BEFORE, FIELD + BEFORE))
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize(("generated", "file"), [("crd", "crds/rljobs.yaml"), ("reference", "docs/api.md")])
def test_what_is_generated_has_the_field_and_is_else_as_before(said: dict, generated: str, file: str) -> None:
    before = (ROOT / file).read_text(encoding="utf-8").splitlines()
    changes = [line for line in difflib.ndiff(before, said[generated].splitlines()) if line[0] in "+-"]
    assert not [line for line in changes if line[0] == "-"]
    assert "Weight of what has not been seen." in "\n".join(changes)


def test_it_reaches_the_driver_and_only_when_it_is_set(said: dict) -> None:
    where = ["spec", "algorithm", "novelty"]
    assert said["set"] == {"document": {"novelty": 0.5}, "must": [where], "read": 0.5}
    assert said["default"] == {"document": {}, "must": [], "read": 0.25}


def test_a_wrong_value_is_refused_by_its_field(said: dict) -> None:
    assert "spec.algorithm.novelty" in said["refused"]


def test_it_cannot_be_changed_once_the_job_exists(said: dict) -> None:
    assert any(".spec.algorithm".startswith(held) or held == ".spec.algorithm.novelty" for held in said["held"])
