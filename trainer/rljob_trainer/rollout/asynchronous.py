"""The asynchronous source: it generates while the ranks train (placement `async`).

The engines always have groups under way, `placement.maxStaleness` steps ahead of the trainer at most; new weights
interrupt what is generated for the time of the sync, and it goes on with them: every token keeps its version.
What a commit holds of this is the numbers of the groups under way: they are generated anew after a resume. A group that
`rollout.dynamicFilter` drops as it is finished leaves its place to another prompt's at once.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rljob.types import Sample, SamplingParams
from rljob_api.errors import UserError
from rljob_api.rules.arithmetic import max_staleness
from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.data.prompts import PromptRow, PromptSource
from rljob_trainer.metrics.timing import Phase, PhaseTimer
from rljob_trainer.rollout.dynamic_sampling import DRAWS, TOO_LITTLE, Dropped, make_filter
from rljob_trainer.rollout.samples import make_samples, sampling_params
from rljob_trainer.rollout.source import Rollout, RolloutFailedError
from rljob_trainer.rollout.staleness import Ledger

FULL = 0.5
"""Engines that generate this share of a batch gain little from more samples."""
PATIENCE = 0.5
"""Of the time that a step trained: how long it waits for samples that end soon, at most. What the engines generate in
that time is read again in a fraction of it, so a longer wait would cost more than the interruption."""
BATCH_POLL_SECONDS, END_POLL_SECONDS = 0.1, 0.05
"""Between two looks at what is finished: while a batch is waited for, and while samples are let end."""
NUMBER = "group"
"""Key of a pending entry in the loop's state: the number of a group, counted over the whole run."""


class UnderWay(Protocol):
    """Samples that engines generate."""

    @property
    def done(self) -> bool: ...

    @property
    def loads(self) -> Sequence[int]: ...

    def poll(self, timeout: float) -> None: ...

    def results(self) -> list[Sample]: ...


class Engines(Protocol):
    """What generates; see `workers.engine_group.EngineGroup`."""

    ranks_hold_version: bool

    def submit(
        self,
        samples: Sequence[Sample],
        sampling: SamplingParams,
        retriever_url: str | None,
        *,
        loads: Sequence[int] = (),
    ) -> UnderWay: ...


@dataclass
class DriverLoop:
    """What the source asks of the driver.

    Callbacks rather than tasks of an event loop: groups are started, taken in and scored by the thread that trains, at
    the places where it waits, so that no lock is needed and a commit sees them at rest.
    """

    score: Callable[[list[Sample]], None]
    """Sets rewards."""
    running: Callable[[], float]
    """Samples that the engines decode just now."""
    beat: Callable[[], None]
    """To be called about once a second during a wait."""
    beat_or_stop: Callable[[], None]
    """The same, where the wait may be left: commits and raises Stop when somebody asked for an end."""
    set_while_waiting: Callable[[Callable[[], None]], None]
    """Sets what the driver does about once a second wherever it waits for workers."""


class AsynchronousSource:
    """Keeps groups under way and collects them, wherever the driver waits for something. See `source.RolloutSource`."""

    generating: tuple[Phase, ...] = ("generate", "train", "sync")

    def __init__(
        self,
        spec: RLJobSpec,
        engines: Engines,
        prompts: PromptSource,
        loop: DriverLoop,
        timer: PhaseTimer,
        *,
        job_seed: int,
        retriever_url: str | None,
        rollout: int,
        cursor: Mapping[str, Any],
        pending: Sequence[Mapping[str, Any]],
    ) -> None:
        """rollout, cursor, pending: where the run stands, as in `LoopState`."""
        self._spec, self._engines, self._prompts, self._loop, self._timer = spec.rollout, engines, prompts, loop, timer
        self._job_seed, self._retriever_url = job_seed, retriever_url
        self.ledger = Ledger(spec.rollout.batch_size, max_staleness(spec))
        self._rollout = rollout
        """Rollouts trained, which is the version of the ranks' weights."""
        self._served = rollout
        """The version that groups are started with: the trainer's is one ahead until the engines have it."""
        self._samples = spec.rollout.batch_size * spec.rollout.n_samples_per_prompt
        self._sampling = sampling_params(spec.rollout.sampling)
        self._keep = make_filter(spec.rollout)
        self._most = spec.rollout.max_prompts_per_rollout or DRAWS * spec.rollout.batch_size
        self._dropped = Dropped()
        """Since the last batch was taken."""
        self._dropped_tokens = 0
        self._generating: dict[int, UnderWay] = {}
        self._finished: dict[int, list[Sample]] = {}
        self._collecting = False
        self._busy, self._looked = 0.0, time.monotonic()
        self._again = [int(entry[NUMBER]) for entry in pending]
        prompts.restore(cursor)
        if not cursor:  # the beginning, or a commit of a version that kept no cursor
            prompts.next(rollout * spec.rollout.batch_size + len(self._again))

    # -- what the training turn calls ----------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Groups are under way within the block."""
        self._loop.set_while_waiting(lambda: self.collect(0.0))
        try:
            yield
        finally:
            self._loop.set_while_waiting(lambda: None)

    def next(self) -> Rollout:
        """Wait for the next batch. Raises RolloutFailedError when it is not there in time."""
        with self._timer.phase("generate"):
            samples = self._wait_for_batch()
        dropped = self._dropped.metrics() if self._keep is not None else {}
        tokens = sum(sum(sample.loss_mask) for sample in samples) + self._dropped_tokens
        self._dropped, self._dropped_tokens = Dropped(), 0
        if self._keep is None:
            with self._timer.phase("reward"):
                self._loop.score(samples)
        return Rollout(samples, tokens, dropped)

    def before_training(self) -> None:
        """An engine that is replaced from here on gets its weights with the next version."""
        self._engines.ranks_hold_version = False

    def discard(self) -> None:
        """The groups of the batch leave the ledger, and others are started for it. An engine that
        was replaced during the step gets the ranks' weights, as they are, with the sync that follows."""
        self._engines.ranks_hold_version = True
        self.ledger.trained()

    def before_sync(self) -> None:
        with self._timer.phase("generate"):
            self.let_end(PATIENCE * self._timer.seconds("train"))

    def trained(self) -> None:
        self._rollout += 1

    def served(self) -> None:
        self._served = self._rollout
        self.ledger.trained()

    def position(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The prompts before the cursor are trained, dropped or under way."""
        return self._prompts.state(), [{NUMBER: number} for number in self.ledger.pending]

    def take_busy_seconds(self) -> float | None:
        busy, self._busy = self._busy, 0.0
        return busy

    # -- generating ----------------------------------------------------------------------------------------------

    def collect(self, timeout: float) -> None:
        """Collect what is finished, waiting up to `timeout` seconds, and start what may be started."""
        if self._collecting:  # an engine is replaced, and that waits
            return
        self._collecting = True
        now = time.monotonic()
        if self._generating:
            self._busy += now - self._looked
        self._looked = now
        try:
            self._start()
            for number, generating in list(self._generating.items()):
                generating.poll(0.0)
                if generating.done:
                    del self._generating[number]
                    self._finish(number, generating.results())
            if timeout and self._generating:
                next(iter(self._generating.values())).poll(timeout)
        finally:
            self._collecting = False

    def take(self) -> list[Sample] | None:
        """The samples of the next step, groups numbered from 0; None: not yet."""
        numbers = self.ledger.take(self._rollout)
        if numbers is None:
            return None
        return [
            replace(sample, group=group)
            for group, number in enumerate(numbers)
            for sample in self._finished.pop(number)
        ]

    def let_end(self, patience: float) -> None:
        """Wait up to `patience` seconds for the next step's samples where they are about to end.

        New weights cost what they interrupt: all tokens so far are read again, and samples started meanwhile share the
        engine with what is left. So once nothing else is to be done than to wait for them, samples that end nearly at
        the same time are let end. Where a few long ones are left, the engines have room, and new samples come first.
        """
        start = time.monotonic()
        while self._ends_soon() and time.monotonic() - start < patience:
            self.collect(END_POLL_SECONDS)
            self._loop.beat()

    def _ends_soon(self) -> bool:
        """In training: whether the next step's samples are not there yet, and the engines are still full of such."""
        if self.ledger.next(self._served + 1) is not None or not self._generating:
            return False
        return self._loop.running() >= FULL * self._samples

    def _wait_for_batch(self) -> list[Sample]:
        limit = float(self._spec.timeout_seconds)
        start = time.monotonic()
        while True:
            self.collect(0.0)
            samples = self.take()
            if samples is not None:
                return samples
            self.collect(BATCH_POLL_SECONDS)
            self._loop.beat_or_stop()
            if time.monotonic() - start > limit:
                raise RolloutFailedError(
                    f"rollout {self._rollout}: its samples were not there within spec.rollout.timeoutSeconds = "
                    f"{limit:.0f}"
                )

    def _finish(self, number: int, samples: list[Sample]) -> None:
        """All samples of a group are there: it waits to be trained, unless the filter drops it."""
        if self._keep is not None:
            self._loop.score(samples)
            if not self._keep(samples):
                self.ledger.drop(number)
                self._count_dropped(samples)
                return
        self._finished[number] = samples
        self.ledger.finish(number)

    def _count_dropped(self, samples: list[Sample]) -> None:
        self._dropped.add(samples)
        self._dropped_tokens += sum(sum(sample.loss_mask) for sample in samples)
        if self._dropped.count > self._most - self.ledger.batch:
            raise UserError(
                f"rollout {self._rollout}: since the batch before, {self._dropped}",
                hint=TOO_LITTLE,
            )

    @property
    def _missing(self) -> int:
        """Groups that are neither trained, nor taken for training, nor under way, of all that will be trained."""
        there = self._rollout * self._spec.batch_size + self.ledger.in_training + len(self.ledger.pending)
        return self._spec.num_rollout * self._spec.batch_size - there

    def _row(self) -> tuple[int, PromptRow]:
        """The next group's number and prompt: first those that a commit says are to be generated anew."""
        if self._again:
            number = self._again.pop(0)
            return number, self._prompts.at(number)
        return self._prompts.drawn, self._prompts.next(1)[0]

    def _start(self) -> None:
        while self.ledger.room() > 0 and self._missing > 0:
            number, row = self._row()
            rollout, group = divmod(number, self._spec.batch_size)
            samples = make_samples(
                [row], self._spec.n_samples_per_prompt, job_seed=self._job_seed, stage="train",
                rollout=rollout, first_group=group,
            )  # fmt: skip
            loads = [sum(each) for each in zip(*(one.loads for one in self._generating.values()), strict=True)]
            self.ledger.start([number], self._served)
            self._generating[number] = self._engines.submit(samples, self._sampling, self._retriever_url, loads=loads)
