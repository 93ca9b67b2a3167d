"""A new engine is one folder and one line of the catalogue: nothing else of the product knows it."""

import os
import shutil
from pathlib import Path

import pytest
import rljob_api
import rljob_trainer

from trainer.tests.orchestrator.conftest import TinyRun, tiny, tiny_world  # noqa: F401 - fixtures

FOLDER = Path(__file__).with_name("plain_engine")
LINE = '        Engine("plain", f"{_INFERENCE}.plain.engine:build"),\n'
BEFORE = '        Engine("torch", '


@pytest.fixture
def with_plain_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the folder and the line."""
    copy = tmp_path_factory.mktemp("product")
    for package in (rljob_api, rljob_trainer):
        source = Path(package.__file__ or "").parent
        shutil.copytree(source, copy / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(FOLDER, copy / "rljob_trainer/inference/plain", ignore=shutil.ignore_patterns("__pycache__"))
    catalogue = copy / "rljob_api/catalogue/engines.py"
    text = catalogue.read_text()
    assert text.count(BEFORE) == 1
    catalogue.write_text(text.replace(BEFORE, LINE + BEFORE))
    return copy


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_trains_a_job_from_end_to_end(with_plain_engine: Path, tiny: TinyRun) -> None:  # noqa: F811
    tiny.manifest["spec"]["rollout"] |= {"engine": "plain", "engineArgs": {}, "numRollout": 2}
    tiny.manifest["spec"]["sft"]["numSteps"] = 2
    path = os.pathsep.join((str(with_plain_engine), os.environ.get("PYTHONPATH", "")))
    ended = tiny.run(cold=True, env={"PYTHONPATH": path})
    assert ended.code == 0, ended.stderr
    summary = tiny.summary()
    assert (summary["state"], summary["steps"]) == ("Succeeded", 4)
    steps = tiny.records("rl")
    assert len(steps) == 2
    for step in steps:
        assert step["generated_length"] > 0
        assert step["logprob_diff_max"] < 1e-4, "the log-probabilities of its tokens are those that the ranks compute"
