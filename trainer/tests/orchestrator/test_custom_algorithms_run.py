"""Algorithms of one's own in whole runs: by import path without a change of the product, and built in by one file and
one line of the catalogue."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rljob_api.errors import UserError

from .conftest import MANIFEST
from .in_process import InProcess

ROOT = Path(__file__).resolve().parents[3]
HOOKS = '''import torch
from rljob import PolicyLossOutputs

seen = []


def within_the_group(inputs, *, epsilon):
    """GRPO."""
    advantages = torch.zeros_like(inputs.rewards)
    for group in inputs.groups.unique():
        members = inputs.groups == group
        rewards = inputs.rewards[members]
        if not bool((rewards == rewards[0]).all()):
            advantages[members] = (rewards - rewards.mean()) / (rewards.std() + epsilon)
    seen.append(("advantages", len(inputs.rewards)))
    return advantages


def clipped(inputs, *, low, high):
    """PPO's."""
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    plain = -ratio * inputs.advantages
    bounded = -ratio.clamp(1 - low, 1 + high) * inputs.advantages
    seen.append(("loss", inputs.num_samples))
    return PolicyLossOutputs(torch.maximum(plain, bounded), bounded > plain, ratio.detach())


def breaks(inputs):
    raise RuntimeError("out of ideas")
'''


def tiny_job(**algorithm: Any) -> dict[str, Any]:
    """The tiny job without SFT and evaluations: two rollouts of two steps."""
    manifest = copy.deepcopy(MANIFEST)
    spec = manifest["spec"]
    del spec["sft"], spec["evaluation"]
    spec["rollout"]["numRollout"] = 2
    spec["trainer"] |= {"numStepsPerRollout": 2}
    spec["algorithm"] = {"kl": {"lossCoef": 0.01}, "epsClip": 0.05} | algorithm
    return manifest


def in_process(directory: Path, world: Path, patch: pytest.MonkeyPatch, **algorithm: Any) -> InProcess:
    directory.mkdir()
    (directory / "world").symlink_to(world)
    return InProcess(directory, tiny_job(**algorithm), patch)


@pytest.mark.slow
def test_the_users_own_grpo_trains_as_the_built_in_one_does(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_grpo.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    built_in = in_process(tmp_path / "built-in", tiny_world, monkeypatch)
    own = in_process(
        tmp_path / "own", tiny_world, monkeypatch,
        customAdvantages={"function": "my_grpo:within_the_group", "args": {"epsilon": 1e-6}},
        customPolicyLoss={"function": "my_grpo:clipped", "args": {"low": 0.05, "high": 0.05}},
    )  # fmt: skip
    for run in (built_in, own):
        run.run()
    assert {kind for kind, _ in sys.modules["my_grpo"].seen} == {"advantages", "loss"}
    assert own.summary()["weights_digest"] == built_in.summary()["weights_digest"]
    names = ("reward", "loss", "kl", "clipfrac", "ratio_mean", "ratio_max", "grad_norm")
    for mine, theirs in zip(own.records("rl"), built_in.records("rl"), strict=True):
        assert {name: mine[name] for name in names} == {name: theirs[name] for name in names}
        assert mine["ratio_max"] > 1.0


@pytest.mark.parametrize("field", ["customAdvantages", "customPolicyLoss"])
def test_a_function_that_raises_ends_the_job_with_its_line(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    (tmp_path / "my_broken.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_broken", raising=False)
    run = in_process(tmp_path / "job", tiny_world, monkeypatch, **{field: {"function": "my_broken:breaks"}})
    with pytest.raises(UserError) as caught:
        run.run()
    said = f"spec.algorithm.{field}.function: my_broken:breaks raised RuntimeError: out of ideas (my_broken.py:29)"
    assert caught.value.message == said


# A built-in algorithm: one file, one line of the catalogue, one document.

NEW_FILES = {
    "trainer/rljob_trainer/algorithms/opo.py": '''"""Length-weighted baseline (OPO, arXiv 2505.23585)."""

import torch


def opo(inputs):
    advantages = torch.empty_like(inputs.rewards)
    for group in inputs.groups.unique():
        members = inputs.groups == group
        rewards, sizes = inputs.rewards[members], inputs.sizes[members]
        advantages[members] = rewards - (rewards * sizes).sum() / sizes.sum()
    return advantages.float()
''',
    "trainer/rljob_trainer/algorithms/reinforce.py": '''"""The policy gradient without a ratio (Williams 1992)."""

import torch
from rljob.algorithms import PolicyLossOutputs


def reinforce(inputs):
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs).detach()
    return PolicyLossOutputs(-inputs.advantages * inputs.logprobs, torch.zeros_like(ratio, dtype=torch.bool), ratio)
''',
    "trainer/rljob_trainer/rewards/variety.py": '''"""The share of tokens that differ."""


def variety(args):
    weight = args.number("weight", 1.0)
    return lambda sample: weight * len(set(sample.response_ids)) / max(len(sample.response_ids), 1)
''',
    "trainer/rljob_trainer/rewards/brevity.py": '''"""1 for a short text. A worker runs it."""


def brevity(sample):
    return float(len(sample.response) < 20)
''',
}
NEW_LINES = {
    "estimators": ('        Estimator("gae", ', '        Estimator("opo", "rljob_trainer.algorithms.opo:opo"),\n'),
    "losses": (
        '        Loss("gspo", ',
        '        Loss("reinforce", "rljob_trainer.algorithms.reinforce:reinforce", ()),\n',
    ),
    "rewards": ('        Reward("length", ', '        Reward("variety", "rljob_trainer.rewards.variety:variety"),\n'),
}
WORKER_LINE = '        Reward("brevity", "rljob_trainer.rewards.brevity:brevity", runs="worker"),\n'
RUN = """
import json, sys
from pathlib import Path

import pytest
import rljob_api, rljob_trainer

directory, copied = Path(sys.argv[1]), sys.argv[2]
assert rljob_api.__file__.startswith(copied) and rljob_trainer.__file__.startswith(copied)
from trainer.tests.orchestrator.in_process import InProcess

with pytest.MonkeyPatch.context() as patch:
    InProcess(directory, json.loads((directory / "job.json").read_text()), patch).run()
"""


@pytest.mark.slow
def test_a_built_in_algorithm_is_a_file_and_a_line_of_the_catalogue(tiny_world: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    for package in ("api/rljob", "api/rljob_api", "trainer/rljob_trainer"):
        shutil.copytree(ROOT / package, copies / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in NEW_FILES.items():
        (copies / file).write_text(text)
    for name, (before, line) in NEW_LINES.items():
        path = copies / f"api/rljob_api/catalogue/{name}.py"
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, line + (WORKER_LINE if name == "rewards" else "") + before))
    directory = tmp_path / "job"
    directory.mkdir()
    (directory / "world").symlink_to(tiny_world)
    manifest = tiny_job(advantageEstimator="opo", policyLoss="reinforce")
    rewards = [{"name": "variety", "args": {"weight": 0.5}}, {"name": "brevity"}]
    manifest["spec"]["reward"] = {"functions": rewards}
    (directory / "job.json").write_text(json.dumps(manifest))
    path = os.pathsep.join(str(folder) for folder in (copies / "api", copies / "trainer", ROOT))
    command = [sys.executable, "-c", RUN, str(directory), str(copies)]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((directory / "summary.json").read_text())["state"] == "Succeeded"
    (metrics,) = directory.glob("attempts/*/metrics.jsonl")
    records = [record for record in map(json.loads, metrics.read_text().splitlines()) if record["kind"] == "rl"]
    assert len(records) == 2
    for record in records:
        assert 0 < record["reward/variety"] <= 0.5
        assert 0 <= record["reward/brevity"] <= 1
        assert record["clipfrac"] == 0.0
        assert record["grad_norm"] > 0.0
