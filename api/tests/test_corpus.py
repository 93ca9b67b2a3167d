"""Every bad manifest of the corpus is refused without a cluster, in the words that the corpus asks for."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rljob_api.errors import ManifestError
from rljob_api.manifest.load import loads
from rljob_api.rules.checks import check, inconsistent


def _corpus() -> ModuleType:
    path = Path(__file__).parents[2] / "e2e" / "tests" / "corpus.py"
    spec = importlib.util.spec_from_file_location("bad_manifest_corpus", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


corpus = _corpus()


def refusals(manifest: dict[str, object]) -> list[str]:
    try:
        job = loads(json.dumps(manifest))
    except ManifestError as error:
        return [str(problem) for problem in error.problems]
    return [str(problem) for problem in (*check(job), *inconsistent(job.spec))]


@pytest.mark.parametrize("case", corpus.cases(), ids=lambda case: case.id)
def test_bad_manifest_is_refused_in_so_many_words(case) -> None:
    said = refusals(case.manifest)
    assert any(case.says in line for line in said), said


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    ids = [case.id for case in corpus.cases()]
    assert len(ids) == len(set(ids)) >= 60


def test_good_manifests_have_no_contradictions() -> None:
    cpu, gpu = (loads(json.dumps(corpus.good(base))) for base in ("cpu", "gpu"))
    assert check(cpu) == []
    assert inconsistent(gpu.spec) == []
