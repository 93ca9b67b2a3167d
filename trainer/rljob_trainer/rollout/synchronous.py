"""The synchronous source: draw prompts, generate, score, filter, until a batch is full; then it is trained on.

Generation goes in rounds. Without partial rollouts a round generates every sample to its end. With them it gives each
sample `rollout.partialRolloutTokens` more tokens; after a round the finished groups are looked at, in the order in
which their prompts were drawn, and when the batch is full what is unfinished waits for the next rollout. So which
groups are chosen, dropped and cut depends on tokens alone, never on how fast they came.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from rljob.types import Generation, Sample, SamplingParams, TurnRecord
from rljob_api.errors import UserError
from rljob_api.v1alpha1.rollout import RolloutSpec

from rljob_trainer.data.prompts import PromptRow, PromptSource
from rljob_trainer.metrics.timing import Phase, PhaseTimer
from rljob_trainer.rollout.dynamic_sampling import (
    DRAWS,
    TOO_LITTLE,
    UNFINISHED,
    Filter,
    Group,
    Selection,
    make_filter,
)
from rljob_trainer.rollout.resume import tokens_kept
from rljob_trainer.rollout.samples import make_samples, sampling_params
from rljob_trainer.rollout.source import Rollout

Generate = Callable[[list[Sample], SamplingParams], list[Sample]]
Score = Callable[[list[Sample]], None]
_FROM_DATA = ("prompt", "prompt_ids", "label", "metadata", "source")


class SynchronousSource:
    """Generates a rollout while nothing is trained. See `source.RolloutSource`.

    Groups that are left over go through their form in a commit from one rollout to the next, so that a resumed run
    sees what an undisturbed one does.
    """

    generating: tuple[Phase, ...] = ("generate",)

    def __init__(
        self,
        spec: RolloutSpec,
        prompts: PromptSource,
        generate: Generate,
        score: Score,
        timer: PhaseTimer,
        *,
        job_seed: int,
        rollout: int,
        cursor: Mapping[str, Any],
        pending: Sequence[dict[str, Any]],
    ) -> None:
        """generate: gives the samples back in their order. score: sets their rewards. rollout, cursor, pending: where
        the run stands, as in `LoopState`. Raises UserError for a filter that is not there or other prompts."""
        self._spec, self._prompts, self._timer, self._job_seed = spec, prompts, timer, job_seed
        self._generate_with, self._score_with = generate, score
        self._keep = make_filter(spec)
        self._rollout, self._pending = rollout, list(pending)
        if cursor:
            prompts.restore(cursor)

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def next(self) -> Rollout:
        collected = collect(
            self._spec,
            self._prompts,
            groups_from_json(self._pending, self._prompts.rows),
            self._generate,
            self._score,
            self._keep,
            job_seed=self._job_seed,
            rollout=self._rollout,
        )
        self._pending = groups_to_json(collected.left)
        return Rollout(collected.samples, collected.generated, collected.metrics)

    def before_training(self) -> None:
        """Nothing is under way."""

    def discard(self) -> None:
        """The prompts have gone on already."""

    def before_sync(self) -> None:
        """Nothing is under way."""

    def trained(self) -> None:
        self._rollout += 1

    def served(self) -> None:
        """Nothing is under way."""

    def position(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return self._prompts.state(), list(self._pending)

    def take_busy_seconds(self) -> float | None:
        return None

    def _generate(self, samples: list[Sample], sampling: SamplingParams) -> list[Sample]:
        with self._timer.phase("generate"):
            return self._generate_with(samples, sampling)

    def _score(self, samples: list[Sample]) -> None:
        with self._timer.phase("reward"):
            self._score_with(samples)


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


def collect(
    spec: RolloutSpec,
    prompts: Prompts,
    left: Sequence[Group],
    generate: Generate,
    score: Score,
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
        Group([replace(sample, group=limit + number) for sample in group.samples], carried_over=True)
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
    generate: Generate,
    score: Score,
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
        "sampling/groups_kept_from_before": float(sum(group.carried_over for group in batch)),
        "sampling/groups_left_ready": float(ready),
        "sampling/groups_left_unfinished": float(len(rest) - ready),
        "sampling/stale_tokens": sum(version < rollout for version in versions) / max(len(versions), 1),
        "sampling/staleness_max": float(rollout - min(versions, default=rollout)),
    }


def groups_to_json(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For `LoopState.pending`."""
    return [{"samples": [_to_json(sample) for sample in group.samples]} for group in groups]


def groups_from_json(pending: Sequence[Mapping[str, Any]], rows: Sequence[PromptRow]) -> list[Group]:
    """From `LoopState.pending`. Raises UserError for a row that the data no longer has."""
    if not pending:
        return []
    by_number = {row.row: row for row in rows}
    return [Group([_from_json(sample, by_number) for sample in group["samples"]]) for group in pending]


def _to_json(sample: Sample) -> dict[str, Any]:
    data = asdict(sample)
    return {key: value for key, value in data.items() if key not in _FROM_DATA}


def _from_json(data: Mapping[str, Any], rows: Mapping[int, PromptRow]) -> Sample:
    row = rows.get(data["row"])
    if row is None:
        raise UserError(f"spec.data.train: row {data['row']} of the commit's pending samples is not in the data")
    transcript = [
        [TurnRecord(turn["new_token_ids"], Generation(**turn["generation"])) for turn in turns]
        for turns in data["transcript"]
    ]
    return Sample(
        prompt=row.prompt,
        prompt_ids=list(row.prompt_ids),
        label=row.label,
        metadata=dict(row.metadata),
        source=row.source,
        **{**data, "transcript": transcript},
    )
