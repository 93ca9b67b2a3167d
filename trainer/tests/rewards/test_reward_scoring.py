"""Scoring rollouts: weights, parts, custom functions, and functions that fail, hang or crash."""

from pathlib import Path
from typing import Any

import pytest
from rljob.types import Sample
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardSpec
from rljob_trainer.rewards import RewardScorer, score
from rljob_trainer.rewards.worker import memory_limit

MODULE = """
import asyncio, os, time

print("imported; printing must not disturb the protocol")

def words(sample, scale=1.0):
    print("scoring", sample.index)
    return scale * len(sample.response.split())

def parts(sample):
    return {"fluency": 0.25, "facts": 0.5}

def huge(sample):
    return {"a": 1e308, "b": 1e308} if sample.response == "sum" else 1e308

def named(sample):
    return {"reward": 2.0, "seen": 7.0}

def moody(sample):
    what = sample.response
    if what == "raise": raise KeyError("no such thing")
    if what == "hang":
        while True: pass
    if what == "sleep": time.sleep(1000)
    if what == "exit": os._exit(3)
    if what == "nan": return float("nan")
    if what == "text": return "good"
    return 1.0

async def patient(sample):
    if sample.response == "hang": await asyncio.sleep(1000)
    if sample.response == "block": time.sleep(1000)
    await asyncio.sleep(0.2)
    return 1.0
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "reward_hooks.py").write_text(MODULE)
    (tmp_path / "broken_hooks.py").write_text("import nothing_like_it\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "reward_hooks"


def spec(*functions: dict[str, Any], **options: Any) -> RewardSpec:
    return RewardSpec.model_validate({"functions": list(functions), **options})


def sample(response: str, label: Any = "x", **fields: Any) -> Sample:
    return Sample(prompt="p", prompt_ids=[1], response=response, label=label, **fields)


def test_the_reward_is_the_weighted_sum() -> None:
    samples = [sample("<answer>x</answer>"), sample("<answer>y</answer>"), sample("y")]
    functions = [
        {"name": "em", "args": {"formatScore": 0.2}, "weight": 2.0},
        {"name": "format", "weight": 0.5, "label": "form"},
    ]
    report = score(samples, spec(*functions))
    assert [s.reward for s in samples] == [2.5, pytest.approx(0.9), 0.0]
    assert samples[1].reward_parts == {"em": 0.2, "form": 1.0}
    assert (report.samples, report.failures, report.timeouts) == (3, 0, 0)


def test_length_penalty() -> None:
    samples = [sample("", response_ids=[0] * length) for length in (0, 60, 80, 100, 200)]
    score(samples, spec({"name": "length", "args": {"maxLength": 100, "buffer": 40}}))
    assert [s.reward for s in samples] == [0.0, 0.0, -0.5, -1.0, -1.0]


@pytest.mark.slow
def test_custom_functions(hooks: str) -> None:
    samples = [sample("one two three"), sample("one")]
    functions = [
        {"name": "custom", "function": f"{hooks}:words", "args": {"scale": 0.5}, "weight": 2.0},
        {"name": "custom", "function": f"{hooks}:parts", "label": "judge"},
        {"name": "custom", "function": f"{hooks}:named"},
    ]
    report = score(samples, spec(*functions, workers=2))
    assert samples[0].reward == 3.0 + 0.75 + 2.0
    assert samples[1].reward_parts == {
        "custom": 0.5,
        "judge": 0.75,
        "judge/fluency": 0.25,
        "judge/facts": 0.5,
        "custom-3": 2.0,
        "custom-3/reward": 2.0,
        "custom-3/seen": 7.0,
    }
    assert report.failures == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_what_goes_wrong_costs_one_sample(hooks: str, workers: int) -> None:
    moods = ["fine", "raise", "fine", "hang", "sleep", "fine", "exit", "nan", "text", "fine"]
    samples = [sample(mood) for mood in moods]
    functions = {"name": "custom", "function": f"{hooks}:moody"}
    with RewardScorer(spec(functions, timeoutSeconds=1.0, failureReward=-1.0, workers=workers)) as scorer:
        report = scorer.score(samples)
        assert [s.reward for s in samples] == [1.0 if mood == "fine" else -1.0 for mood in moods]
        assert (report.failures, report.timeouts) == (6, 2)
        assert "KeyError" in str(samples[1].info["reward_error"])
        assert "ran out of time" in str(samples[3].info["reward_error"])
        assert "exit code 3" in str(samples[6].info["reward_error"])
        assert "nan" in str(samples[7].info["reward_error"])
        assert "not 'good'" in str(samples[8].info["reward_error"])
        # Scored again when the cause is gone, nothing of the failure stays.
        samples[1].response = "fine"
        assert scorer.score(samples[:3]).failures == 0
        assert samples[1].reward == 1.0
        assert "reward_error" not in samples[1].info


@pytest.mark.slow
def test_a_sum_that_overflows_costs_its_sample_alone(hooks: str) -> None:
    function = {"name": "custom", "function": f"{hooks}:huge", "weight": 10}
    samples = [sample("product"), sample("sum")]
    report = score(samples, spec(function, {"name": "em"}, failureReward=-1))
    assert [each.reward for each in samples] == [-1, -1]
    assert all("not finite" in str(each.info["reward_error"]) for each in samples)
    assert report.failures == 2
    fine = [sample("product")]
    score(fine, spec(function | {"weight": 0.1}))
    assert fine[0].reward == pytest.approx(1e307)


def test_async_functions_run_side_by_side_and_a_stuck_one_costs_itself_alone(hooks: str) -> None:
    moods = ["fine"] * 30 + ["hang", "block"] + ["fine"] * 8
    samples = [sample(mood) for mood in moods]
    report = score(samples, spec({"name": "custom", "function": f"{hooks}:patient"}, timeoutSeconds=2.0))
    assert [s.reward for s in samples] == [1.0 if mood == "fine" else 0.0 for mood in moods]
    assert (report.failures, report.timeouts) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module:f", "no module 'no_such_module'"),
        ("reward_hooks:missing", "has no 'missing'"),
        ("broken_hooks:f", "needs 'nothing_like_it'"),
        ("reward_hooks:time", "not a function"),
    ],
)
def test_functions_that_cannot_be_had(hooks: str, function: str, message: str) -> None:
    with pytest.raises(UserError, match=r"spec\.reward\.functions\[1\]\.function") as caught:
        score([sample("x")], spec({"name": "em"}, {"name": "custom", "function": function}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ({"name": "em", "args": {"formatScor": 0.2}}, "'em' has no argument 'formatScor'"),
        ({"name": "em", "args": {"formatScore": "much"}}, "'much' is not a number"),
        ({"name": "length"}, r"args\.maxLength is required"),
        ({"name": "length", "args": {"maxLength": 10, "buffer": 20}}, "at most maxLength"),
        ({"name": "custom"}, r"functions\[0\]\.function is required"),
        ({"name": "remote"}, r"functions\[0\]\.url is required"),
        ({"name": "math", "args": {"strict": True}}, "'math' has no argument 'strict'"),
        ({"name": "dapo", "args": {"strictBox": "yes"}}, "'yes' is neither true nor false"),
        ({"name": "format", "args": {"style": "json"}}, "'json' is none of search, think"),
        ({"name": "remote", "url": "http://x", "args": {"batchSize": 0}}, "0 is not a whole number of at least 1"),
    ],
)
def test_bad_specifications(function: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardScorer(spec(function))


@pytest.mark.parametrize("name", ["em", "math", "deepscaler", "dapo"])
def test_a_label_that_cannot_be_read_is_the_users_to_correct(name: str) -> None:
    with pytest.raises(UserError, match="row 17 of the data"):
        score([sample("x", label=None, row=17)], spec({"name": name}))


@pytest.mark.parametrize(
    ("prompt", "response", "count", "form"),
    [
        ("Q\n<think>\n", "x\n</think>\n<answer>\ny\n</answer>", 1.0, 1.0),
        ("Q\n", "x\n</think>\n<answer>\ny\n</answer>", 0.75, 0.0),
        ("Q <think> off", "x\n</think>\n<answer>\ny\n</answer>", 0.75, 0.0),
    ],
)
def test_a_thought_that_the_prompt_opens_belongs_to_the_response(
    prompt: str, response: str, count: float, form: float
) -> None:
    one = Sample(prompt, [1], response=response, label="x")
    score([one], spec({"name": "tag_count"}, {"name": "format", "args": {"style": "think"}}))
    assert one.reward_parts == {"tag_count": count, "format": form}


def test_tags_without_line_breaks_on_request() -> None:
    one = sample("<think>x</think><answer>y</answer>")
    score([one], spec({"name": "tag_count", "args": {"newlines": False}}))
    assert one.reward == 1.0


@pytest.mark.slow
def test_a_verifier_that_hangs_costs_one_sample() -> None:
    hang, fine = r"\int_0^1 x^{1000} e^{x^{50}} dx", "x^{3}+7"
    samples = [sample(f"\\boxed{{{text}}}", label="7+x^3") for text in (fine, hang, fine)]
    report = score(samples, spec({"name": "math"}, timeoutSeconds=3.0, failureReward=-1.0))
    assert [s.reward for s in samples] == [1.0, -1.0, 1.0]
    assert (report.failures, report.timeouts) == (1, 1)
    assert "ran out of time" in str(samples[1].info["reward_error"])


def test_memory_is_bounded() -> None:
    with memory_limit(64 << 20), pytest.raises(MemoryError):
        bytearray(256 << 20)
    assert len(bytearray(256 << 20)) == 256 << 20
