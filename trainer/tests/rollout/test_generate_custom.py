"""Generate functions of users: found, checked, and held to the rules of a sample."""

import sys
from pathlib import Path
from typing import Any

import pytest
from rljob.types import EngineError, Generation, Sample, SamplingParams
from rljob_api.errors import UserError
from rljob_trainer.rollout.generate import CustomGenerate

MODULE = """
from rljob_trainer.rollout.types import EngineError, Generation

async def good(args, sample, sampling, engine):
    sample.append_generation(Generation([4, 5], [-1.0, -2.0], [7, 7], "length", None, args["text"]))
    sample.append_observation([6], "!")
    return sample

async def uneven(args, sample, sampling, engine):
    sample.response_ids = [1, 2]
    return sample

async def odd_mask(args, sample, sampling, engine):
    sample.append_observation([6], "!")
    sample.loss_mask = [2]
    return sample

async def odd_status(args, sample, sampling, engine):
    sample.status = "done"
    return sample

async def forgets(args, sample, sampling, engine):
    pass

async def raises(args, sample, sampling, engine):
    sample.append_observation([6], "!")
    raise KeyError("oops")

async def loses_engine(args, sample, sampling, engine):
    raise EngineError("gone")

class Callable:
    async def __call__(self, args, sample, sampling, engine):
        return sample

instance = Callable()

def plain(args, sample, sampling, engine):
    return sample

async def short(args, sample):
    return sample

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooks_of_a_test.py").write_text(MODULE)
    (tmp_path / "broken_hooks_of_a_test.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("hooks_of_a_test", "broken_hooks_of_a_test"):
        sys.modules.pop(name, None)


async def call(name: str, args: dict[str, Any] | None = None) -> Sample:
    sample = Sample(prompt="Q", prompt_ids=[3], group=2, index=1)
    engine: Any = object()
    return await CustomGenerate(f"hooks_of_a_test:{name}", args or {})(sample, SamplingParams(), engine)


async def test_a_function_of_the_user_fills_in_the_sample() -> None:
    sample = await call("good", {"text": "hi"})
    assert (sample.response_ids, sample.loss_mask, sample.response) == ([4, 5, 6], [1, 1, 0], "hi!")
    assert sample.status == "completed"
    assert (await call("instance")).status == "completed"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("uneven", "loss_mask has 0 entries for 2 response_ids"),
        ("odd_mask", "other than 0 and 1"),
        ("odd_status", "'done'"),
        ("forgets", "returned NoneType"),
        ("raises", "KeyError: 'oops'"),
    ],
)
async def test_its_mistakes_cost_one_sample(name: str, reason: str) -> None:
    sample = await call(name)
    assert sample.status == "failed"
    assert reason in str(sample.info["error"])
    assert sample.response_ids == sample.loss_mask == sample.logprobs == []


async def test_a_lost_engine_is_not_its_fault() -> None:
    with pytest.raises(EngineError, match="gone"):
        await call("loses_engine")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (None, "required with"),
        ("hooks_of_a_test:missing", "has no 'missing'"),
        ("hooks_of_a_test:number", "int, not a function"),
        ("hooks_of_a_test:plain", "not a coroutine function"),
        ("hooks_of_a_test:short", r"short\(args, sample\) cannot be called with four arguments"),
        ("no_such_module_at_all:f", "no module 'no_such_module_at_all'"),
        ("broken_hooks_of_a_test:f", "nothing_of_this_name"),
    ],
)
def test_a_wrong_path_or_signature_is_a_users_sentence(path: str | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        CustomGenerate(path, {})
    assert "spec.rollout.generate.function" in caught.value.message


def test_generation_is_importable_for_hooks() -> None:
    assert Generation([1], [0.0], [0], "stop").text == ""
