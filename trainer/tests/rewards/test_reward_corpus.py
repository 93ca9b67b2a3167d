"""The corpus of answers, scored as a job scores them: one pool of workers for all rows."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from rljob.types import Sample
from rljob_api.v1alpha1.reward import RewardSpec
from rljob_trainer.rewards import RewardScorer

_spec = importlib.util.spec_from_file_location("reward_corpus", Path(__file__).with_name("corpus.py"))
assert _spec is not None
assert _spec.loader is not None
corpus = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(corpus)

FUNCTIONS: dict[str, dict[str, Any]] = {
    "math": {"name": "math"},
    "deepscaler": {"name": "deepscaler"},
    "dapo": {"name": "dapo"},
    "dapo strict": {"name": "dapo", "args": {"strictBox": True}},
    "tag_count": {"name": "tag_count"},
    "format think": {"name": "format", "args": {"style": "think"}},
}


@pytest.fixture(scope="module")
def scored() -> list[Sample]:
    """Every row's sample, scored; rewards of one kind together."""
    samples = [Sample("", [], response=response, label=label) for _, response, label, _, _ in corpus.ROWS]
    for name, function in FUNCTIONS.items():
        of_this = [sample for sample, row in zip(samples, corpus.ROWS, strict=True) if row[0] == name]
        spec = RewardSpec.model_validate({"functions": [function], "timeoutSeconds": 60, "failureReward": -9})
        with RewardScorer(spec) as scorer:
            scorer.score(of_this)
    return samples


def test_the_corpus_is_large_enough() -> None:
    assert len(corpus.BOXED) + len(corpus.WHOLE) + len(corpus.THINKING) + len(corpus.DAPO) + len(corpus.STRICT) >= 200
    assert len({(name, response, repr(label)) for name, response, label, _, _ in corpus.ROWS}) == len(corpus.ROWS)


@pytest.mark.parametrize("place", range(len(corpus.ROWS)), ids=[f"{row[0]}: {row[4]}" for row in corpus.ROWS])
def test_what_an_answer_is_worth(scored: list[Sample], place: int) -> None:
    sample, (_, response, label, expected, _) = scored[place], corpus.ROWS[place]
    if isinstance(expected, str):
        assert sample.reward == -9
        assert expected in str(sample.info["reward_error"])
    else:
        assert sample.info.get("reward_error") is None
        assert sample.reward == expected, f"{response[:200]!r} against {label!r}"
