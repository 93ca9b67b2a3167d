"""What makes up a rollout: over-sampling, DAPO's filter, partial rollouts. No engine: a model that counts."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob.types import Generation, Sample, SamplingParams, TurnRecord
from rljob_api.errors import UserError
from rljob_api.v1alpha1.rollout import RolloutSpec
from rljob_trainer.data.prompts import PromptRow
from rljob_trainer.rollout.dynamic_sampling import Group, make_filter
from rljob_trainer.rollout.resume import blank, tokens_kept
from rljob_trainer.rollout.synchronous import Collected, collect, groups_from_json, groups_to_json

ROWS = [PromptRow(f"p{number}", [number + 1], f"l{number}", {"n": number}, "s", number) for number in range(50)]


class Source:
    """Rows in order, for ever."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def next(self, count: int) -> list[PromptRow]:
        taken = [ROWS[(self.at + i) % len(ROWS)] for i in range(count)]
        self.at += count
        return taken


class Model:
    """A sample's length and reward follow from its seed; it keeps what it had when it is cut off."""

    def __init__(self, version: int, lengths: int = 20, reward: Callable[[Sample], float] | None = None) -> None:
        self.version, self.lengths, self.made, self.calls = version, lengths, 0, 0
        self.reward = reward or (lambda sample: float(sample.seed // 7 % 2))

    def generate(self, samples: list[Sample], sampling: SamplingParams) -> list[Sample]:
        self.calls += 1
        return [self._one(sample, sampling.budget) for sample in samples]

    def _one(self, sample: Sample, budget: int | None) -> Sample:
        length, had = sample.seed % self.lengths + 1, tokens_kept(sample)
        versions = list(sample.transcript[0][0].generation.policy_versions) if had else []
        end = length if budget is None else min(length, had + budget)
        versions += [self.version] * (end - had)
        self.made += end - had
        ids = list(range(end))
        made = replace(blank(sample), metadata=sample.metadata)
        if end < length:
            turn = Generation(ids, [-0.1] * end, versions, "abort")
            return replace(made, status="aborted", transcript=[[TurnRecord(sample.prompt_ids, turn)]])
        made.append_generation(Generation(ids, [-0.1] * end, versions, "stop"))
        made.status = "completed"
        return made

    def score(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.reward = self.reward(sample)


def spec(**fields: Any) -> RolloutSpec:
    return RolloutSpec.model_validate({"batchSize": 4, "nSamplesPerPrompt": 3} | fields)


def run(
    config: RolloutSpec, rollouts: int, *, resumed: bool = False, reward: Callable[[Sample], float] | None = None
) -> tuple[list[Collected], Source, int]:
    """Some rollouts, one after the other; `resumed`: each starts from what a commit would hold."""
    source, left, done, made = Source(), [], [], 0  # type: ignore[var-annotated]
    for rollout in range(rollouts):
        if resumed:
            left = groups_from_json(json.loads(json.dumps(groups_to_json(left))), ROWS)
            source = Source(source.at)
        model = Model(rollout, reward=reward)
        keep = make_filter(config)
        done.append(collect(config, source, left, model.generate, model.score, keep, job_seed=1, rollout=rollout))
        left, made = done[-1].left, made + model.made
    return done, source, made


def test_without_over_sampling_a_rollout_is_its_prompts_in_order() -> None:
    (only,), source, _ = run(spec(), 1)
    assert [sample.prompt for sample in only.samples] == [f"p{n}" for n in range(4) for _ in range(3)]
    assert [sample.group for sample in only.samples] == [n for n in range(4) for _ in range(3)]
    assert (only.left, only.metrics, source.at) == ([], {}, 4)


def test_groups_of_equal_rewards_are_replaced() -> None:
    done, source, _ = run(spec(dynamicFilter="nonzero_std"), 3)
    for collected in done:
        for group in range(4):
            assert len({sample.reward for sample in collected.samples if sample.group == group}) == 2
        values = collected.metrics
        assert values.get("sampling/groups_dropped", 0.0) == values.get("sampling/prompts_drawn", 4.0) - 4
        assert not collected.left
    assert source.at > 12


def test_good_groups_over_are_the_next_rollouts_first() -> None:
    first, second = run(spec(overSamplingBatchSize=7), 2)[0]
    assert [group.samples[0].prompt for group in first.left] == ["p4", "p5", "p6"]
    assert [sample.prompt for sample in second.samples[::3]] == ["p4", "p5", "p6", "p7"]
    assert second.metrics["sampling/groups_kept_from_before"] == 3
    assert second.metrics["sampling/staleness_max"] == 1
    stale = [v < 1 for sample in second.samples for v in sample.policy_versions]
    assert second.metrics["sampling/stale_tokens"] == sum(stale) / len(stale)


def test_data_that_cannot_fill_a_batch_is_an_error_with_numbers() -> None:
    config = spec(dynamicFilter="nonzero_std", maxPromptsPerRollout=10)
    with pytest.raises(UserError) as caught:
        run(config, 1, reward=lambda sample: 0.0)
    text = str(caught.value)
    assert "rollout 0: 10 prompts were drawn and 0 of the 4 groups needed passed" in text
    assert "10 with mean reward 0" in text
    assert "maxPromptsPerRollout" in text


def test_a_filter_of_the_users_own() -> None:
    config = spec(dynamicFilter=f"{__name__.rpartition('.')[2]}:unknown", maxPromptsPerRollout=5)
    with pytest.raises(UserError, match=r"spec\.rollout\.dynamicFilter"):
        make_filter(config)


def test_failed_samples_do_not_make_a_group_differ() -> None:
    keep = make_filter(spec(dynamicFilter="nonzero_std"))
    assert keep is not None
    good = Sample("p", [1], response_ids=[1], loss_mask=[1], status="completed", reward=1.0)
    assert not keep([good, replace(good, status="failed", reward=0.0)])
    assert keep([good, replace(good, reward=0.0)])


def test_partial_rollouts_go_on_with_the_tokens_they_had() -> None:
    config = spec(overSamplingBatchSize=8, partialRollout=True, partialRolloutTokens=6)
    done, _, made = run(config, 6)
    assert any(collected.metrics.get("sampling/groups_left_unfinished") for collected in done)
    mixed = [s for collected in done for s in collected.samples if len(set(s.policy_versions)) > 1]
    assert mixed
    for collected in done:
        for sample in collected.samples:
            assert len(sample.response_ids) == sample.seed % 20 + 1
            assert sample.policy_versions == sorted(sample.policy_versions)
            assert not sample.transcript
    trained = sum(len(s.response_ids) for collected in done for s in collected.samples)
    waiting = sum(len(s.response_ids) + tokens_kept(s) for group in done[-1].left for s in group.samples)
    assert trained + waiting == made == sum(collected.generated for collected in done)  # none made twice, none lost


@given(
    batch=st.integers(1, 5),
    over=st.integers(0, 6),
    partial=st.booleans(),
    tokens=st.integers(1, 25),
    filtered=st.booleans(),
    rollouts=st.integers(1, 5),
)
def test_a_resumed_run_collects_the_same(
    batch: int, over: int, partial: bool, tokens: int, filtered: bool, rollouts: int
) -> None:
    """Also: every prompt drawn is trained, dropped by the filter (and counted), or waits. And no batch is short."""
    fields = {"batchSize": batch, "overSamplingBatchSize": batch + over, "partialRollout": partial and over > 0}
    config = spec(**fields, partialRolloutTokens=tokens, dynamicFilter="nonzero_std" if filtered else None)
    straight, source, _ = run(config, rollouts)
    resumed, _, _ = run(config, rollouts, resumed=True)
    assert [(c.samples, c.metrics) for c in straight] == [(c.samples, c.metrics) for c in resumed]
    assert all(len(collected.samples) == batch * 3 for collected in straight)
    assert all(len(collected.left) <= over for collected in straight)
    dropped = sum(collected.metrics.get("sampling/groups_dropped", 0.0) for collected in straight)
    assert source.at == batch * rollouts + dropped + len(straight[-1].left)


def test_a_commit_of_other_data_is_refused() -> None:
    sample = Sample("p", [1], row=99)
    with pytest.raises(UserError, match="row 99"):
        groups_from_json(groups_to_json([Group([copy.copy(sample)])]), ROWS)
