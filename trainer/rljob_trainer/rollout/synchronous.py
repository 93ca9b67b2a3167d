"""Collecting the groups of one rollout: draw prompts, generate, score, filter, until the batch is full.

Generation goes in rounds. Without partial rollouts a round generates every sample to its end. With them it gives each
sample `rollout.partialRolloutTokens` more tokens; after a round the finished groups are looked at, in the order in
which their prompts were drawn, and when the batch is full what is unfinished waits for the next rollout. So which
groups are chosen, dropped and cut depends on tokens alone, never on how fast they came.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rljob.types import Sample, SamplingParams
from rljob_api.manifest.errors import UserError
from rljob_api.v1alpha1.rollout import RolloutSpec

from rljob_trainer.data.prompts import PromptRow
from rljob_trainer.hooks import load_function
from rljob_trainer.rollout.dynamic_sampling import UNFINISHED, Group, Selection, nonzero_std
from rljob_trainer.rollout.resume import tokens_kept
from rljob_trainer.rollout.samples import make_samples, sampling_params

Filter = Callable[[Sequence[Sample]], bool]
FILTER_FIELD = "spec.rollout.dynamicFilter"
TOO_LITTLE = (
    f"{FILTER_FIELD} finds too little in spec.data.train for this model: use easier or harder prompts, more samples "
    "per prompt, or raise spec.rollout.maxPromptsPerRollout"
)
DRAWS = 16
"""Without a limit of the user's, so many times `overSamplingBatchSize` prompts are drawn for a rollout at most."""


class Prompts(Protocol):
    """Where prompts come from."""

    def next(self, count: int) -> list[PromptRow]: ...


@dataclass(frozen=True)
class Collected:
    """A rollout."""

    samples: list[Sample]
    """Scored, groups numbered from 0."""
    left: list[Group]
    """Good groups over, then unfinished ones: the next rollout starts with them."""
    generated: int
    """Tokens generated for this rollout, those of dropped and unfinished samples included."""
    metrics: dict[str, float]


def make_filter(spec: RolloutSpec) -> Filter | None:
    """The filter of `rollout.dynamicFilter`. Raises UserError for a function that is not there."""
    if spec.dynamic_filter is None:
        return None
    if spec.dynamic_filter == "nonzero_std":
        return nonzero_std
    path, function = spec.dynamic_filter, load_function(spec.dynamic_filter, FILTER_FIELD)

    def custom(samples: Sequence[Sample]) -> bool:
        try:
            return bool(function(samples))
        except Exception as error:  # the user's function: whatever it raises is the user's to read
            raise UserError(f"{FILTER_FIELD}: {path} failed: {type(error).__name__}: {error}") from error

    return custom


def collect(
    spec: RolloutSpec,
    prompts: Prompts,
    left: Sequence[Group],
    generate: Callable[[list[Sample], SamplingParams], list[Sample]],
    score: Callable[[list[Sample]], None],
    keep: Filter | None,
    *,
    job_seed: int,
    rollout: int,
) -> Collected:
    """The groups of rollout number `rollout`, `left` being those that the one before left over.

    Raises UserError when the limit of prompts is reached and the filter has not kept enough.
    """
    at_once = spec.over_sampling_batch_size or spec.batch_size
    limit = spec.max_prompts_per_rollout or DRAWS * at_once
    # Numbers that no prompt of this rollout gets: samples of one number are one group.
    left = [
        Group([replace(sample, group=limit + number) for sample in group.samples], kept=True)
        for number, group in enumerate(left)
    ]
    selection = Selection(
        spec.batch_size,
        at_once,
        limit,
        good=[group for group in left if group.finished],
        under_way=[group for group in left if not group.finished],
    )
    sampling = sampling_params(spec.sampling)
    if spec.partial_rollout:
        sampling = replace(sampling, budget=round_tokens(spec))
    generated = 0
    while not selection.full:
        if selection.exhausted:
            raise UserError(
                f"rollout {rollout}: {selection.shortage()}",
                hint=TOO_LITTLE,
            )
        selection.draw(_new_groups(spec, prompts.next(selection.wanted), job_seed, rollout, selection.drawn))
        generated += _round(selection, generate, score, keep, sampling)
    batch, rest = selection.take()
    samples = [replace(sample, group=number) for number, group in enumerate(batch) for sample in group.samples]
    return Collected(samples, rest, generated, _metrics(spec, selection, batch, rest, rollout))


def round_tokens(spec: RolloutSpec) -> int:
    """Tokens that a sample is given between two looks at the batch; a quarter of a response by default."""
    return spec.partial_rollout_tokens or max(1, -(-spec.sampling.max_response_length // 4))


def _new_groups(spec: RolloutSpec, rows: Sequence[PromptRow], job_seed: int, rollout: int, first: int) -> list[Group]:
    size = spec.n_samples_per_prompt
    samples = make_samples(rows, size, job_seed=job_seed, stage="train", rollout=rollout, first_group=first)
    return [Group(samples[start : start + size]) for start in range(0, len(samples), size)]


def _round(
    selection: Selection,
    generate: Callable[[list[Sample], SamplingParams], list[Sample]],
    score: Callable[[list[Sample]], None],
    keep: Filter | None,
    sampling: SamplingParams,
) -> int:
    """Generate, score what is finished, decide. Returns the tokens generated."""
    places = [
        (group, number)
        for group in selection.under_way
        for number, sample in enumerate(group.samples)
        if sample.status in UNFINISHED
    ]
    before = [group.samples[number] for group, number in places]
    after = generate(before, sampling)
    for (group, number), sample in zip(places, after, strict=True):
        group.samples[number] = sample
    finished = [group for group in selection.under_way if group.finished]
    if finished:
        score([sample for group in finished for sample in group.samples])
    for group in finished:
        selection.finish(group, keep=keep is None or keep(group.samples))
    had = sum(map(tokens_kept, before))
    return sum(sum(sample.loss_mask) + tokens_kept(sample) for sample in after) - had


def _metrics(
    spec: RolloutSpec, selection: Selection, batch: Sequence[Group], rest: Sequence[Group], rollout: int
) -> dict[str, float]:
    """What over-sampling, filter and partial rollouts did; nothing when none of them is on."""
    if not (spec.over_sampling_batch_size or spec.dynamic_filter or spec.partial_rollout):
        return {}
    ready = sum(group.finished for group in rest)
    versions = [v for group in batch for sample in group.samples for v in sample.policy_versions if v >= 0]
    return selection.dropped.metrics() | {
        "sampling/prompts_drawn": float(selection.drawn),
        "sampling/groups_kept_from_before": float(sum(group.kept for group in batch)),
        "sampling/groups_left_ready": float(ready),
        "sampling/groups_left_unfinished": float(len(rest) - ready),
        "sampling/stale_tokens": sum(version < rollout for version in versions) / max(len(versions), 1),
        "sampling/staleness_max": float(rollout - min(versions, default=rollout)),
    }
