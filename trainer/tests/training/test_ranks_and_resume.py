"""Several ranks train the same as one; a resumed run continues to the bit. Each rank is a process."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.tests.training.rank_processes import run
from trainer.tests.training.tiny import job, write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
STEPS: list[list[Any]] = [["sft", 1, 9], ["sft", 2, 9], ["begin_rl"], ["rl", 3, 9], ["rl", 4, 9], ["rl", 5, 7]]


Whole = Callable[[int], dict[str, Any]]
PPO = {
    "advantageEstimator": "gae",
    "lossAggregation": "per_prompt",
    "tis": {"enabled": True, "batchNormalize": True, "level": "geometric"},
    "kl": {"lossCoef": 0.1, "unbiased": True},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """All the steps on that many ranks, without a break, in interpreters that share nothing with the others."""

    @cache
    def on(world: int) -> dict[str, Any]:
        directory = tmp_path_factory.mktemp("whole")
        write_tokenizer(directory)
        return run(directory, world, [["load", None], *STEPS], cold=True)

    return on


def agree(one: dict[str, Any], two: dict[str, Any]) -> None:
    """The numbers of every step are the same but for rounding."""
    for ours, theirs in zip(one["metrics"], two["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name


def test_two_ranks_train_as_one(whole: Whole) -> None:
    agree(whole(1), whole(2))


def test_two_ranks_train_ppo_as_one(job_dir: Path) -> None:
    manifest = job()
    manifest["spec"]["algorithm"] |= PPO
    agree(*(run(job_dir, world, [["load", None], *STEPS], manifest) for world in (1, 2)))


def test_parameters_that_stay_gathered_train_the_same(job_dir: Path) -> None:
    steps = [["load", None], *STEPS[1:4]]
    kept = job()
    kept["spec"]["trainer"]["fsdp"] = {"reshardAfterForward": False}
    assert run(job_dir, 2, steps, kept) == run(job_dir, 2, steps)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("cut", [1, 4], ids=["in sft", "in rl"])
def test_a_resumed_run_ends_with_the_same_bits(job_dir: Path, whole: Whole, world: int, cut: int) -> None:
    commit = str(job_dir / "commit")
    first = run(job_dir, world, [["load", None], *STEPS[:cut], ["save", commit]])
    # Learning rates are a function of the step, which the loop keeps: the resumed process says where it stands.
    done = {kind: sum(step[0] == kind for step in STEPS[:cut]) for kind in ("sft", "rl")}
    rest: list[list[Any]] = []
    for step in STEPS[cut:]:
        rest.append([*step, done[step[0]]] if step[0] in done else step)
        if step[0] in done:
            done[step[0]] += 1
    second = run(job_dir, world, [["load", commit], *rest])
    assert first["metrics"] + second["metrics"] == whole(world)["metrics"]
    assert second["digest"] == whole(world)["digest"]


def test_another_number_of_ranks_takes_a_commit_up(job_dir: Path) -> None:
    written = run(job_dir, 2, [["load", None], *STEPS[:4], ["save", str(job_dir / "two")]])
    read = run(job_dir, 1, [["load", str(job_dir / "two")], ["save", str(job_dir / "one")]])
    assert read["digest"] == written["digest"]
    again = run(job_dir, 3, [["load", str(job_dir / "one")]])
    assert again["digest"] == written["digest"]
    next_of_two = run(job_dir, 2, [["load", str(job_dir / "two")], ["rl", 4, 9, 1]])["metrics"][0]
    next_of_one = run(job_dir, 1, [["load", str(job_dir / "one")], ["rl", 4, 9, 1]])["metrics"][0]
    for name, value in next_of_two.items():
        assert next_of_one[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name


def test_sharded_export_and_bfloat16(job_dir: Path) -> None:
    manifest = job()
    manifest["spec"]["model"]["dtype"] = "bfloat16"
    result = run(job_dir, 2, [["load", None], *STEPS[:4], ["export", str(job_dir / "model")]], manifest)
    assert result["metrics"][-1]["ratio_max"] == 1.0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job_dir / "model")
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(job_dir / "model")) == 40
    from rljob_trainer.weights import weights_digest

    assert weights_digest(dict(model.named_parameters())) == result["digest"]
