"""Reinforcement learning that generates while it trains (placement `async`).

The engines always have groups under way, `placement.maxStaleness` steps ahead of the trainer at most; new weights
interrupt what is generated for the time of the sync, and it goes on with them: every token keeps its version.
What a commit holds of this is the numbers of the groups under way: they are generated anew after a resume. A group that
`rollout.dynamicFilter` drops as it is finished leaves its place to another prompt's at once.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rljob.types import Sample
from rljob_api.manifest.arithmetic import max_staleness
from rljob_api.manifest.errors import UserError

from rljob_trainer.checkpoint.schedule import rollout_due
from rljob_trainer.data.prompts import PromptRow, PromptSource
from rljob_trainer.orchestrator.rl import (
    RolloutFailedError,
    end_turn,
    evaluate_if_due,
    keep_completions,
    statuses_of,
    train_step,
)
from rljob_trainer.orchestrator.run import Run
from rljob_trainer.rollout.collect import DRAWS, TOO_LITTLE, make_filter
from rljob_trainer.rollout.samples import advantages_of, make_samples, rollout_metrics, sampling_params, staleness_of
from rljob_trainer.rollout.selection import Dropped
from rljob_trainer.rollout.staleness import Ledger
from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.workers.engine_group import EngineGroup
from rljob_trainer.workers.generation import Generating
from rljob_trainer.workers.waiting import TICK_SECONDS, WorkerError

FULL = 0.5
"""Engines that generate this share of a batch gain little from more samples."""
PATIENCE = 0.5
"""Of the time that a step trained: how long it waits for samples that end soon, at most. What the engines generate in
that time is read again in a fraction of it, so a longer wait would cost more than the interruption."""
NUMBER = "group"
"""Key of a pending entry in the loop's state: the number of a group, counted over the whole run."""


def train_async(run: Run) -> None:
    """Train from rollout `run.state.rollout` to the last one."""
    spec, state = run.job.spec, run.state
    if run.data.prompts is None or run.engines is None:
        raise RuntimeError("reinforcement learning without prompts or engines")
    total = spec.rollout.num_rollout
    run.recorder.stage("RL", state.rollout, total)
    run.sync_weights()
    done = run.health.done(state, {}, evaluate_if_due(run))
    pump = Pump(run, run.engines, run.data.prompts)
    run.timer.take()
    with pump.beside(run):
        while state.rollout < total and not done:
            run.stop_here()
            cursor = state.data
            values = _turn(run, pump)
            due = rollout_due(spec.checkpoint, state.rollout, cursor, state.data)
            done = end_turn(run, values, due=due, beside=pump.take_busy_seconds)
    state.stage = "Evaluate"
    run.commit()


class Pump:
    """Keeps groups under way and collects them. It runs wherever the loop waits for something."""

    def __init__(self, run: Run, engines: EngineGroup, prompts: PromptSource) -> None:
        spec = run.job.spec
        self._run, self._engines, self._prompts = run, engines, prompts
        self.ledger = Ledger(spec.rollout.batch_size, max_staleness(spec))
        self._served = run.state.policy_version
        """The version that groups are started with: the trainer's is one ahead until the engines have it."""
        self._samples = spec.rollout.batch_size * spec.rollout.n_samples_per_prompt
        self._sampling = sampling_params(spec.rollout.sampling)
        self._keep = make_filter(spec.rollout)
        self._most = spec.rollout.max_prompts_per_rollout or DRAWS * spec.rollout.batch_size
        self._dropped = Dropped()
        """Since the last batch was taken."""
        self._dropped_tokens = 0
        self._generating: dict[int, Generating] = {}
        self._finished: dict[int, list[Sample]] = {}
        self._running = False
        self._busy, self._looked = 0.0, time.monotonic()
        self._again = [int(entry[NUMBER]) for entry in run.state.pending]
        prompts.restore(run.state.data)
        if not run.state.data:  # the beginning, or a commit of a version that kept no cursor
            prompts.next(run.state.rollout * spec.rollout.batch_size + len(self._again))

    @contextmanager
    def beside(self, run: Run) -> Iterator[None]:
        """Run whenever `run` waits for something."""
        run.while_waiting = lambda: self(0.0)
        try:
            yield
        finally:
            run.while_waiting = lambda: None

    def __call__(self, timeout: float) -> None:
        """Collect what is finished, waiting up to `timeout` seconds, and start what may be started."""
        if self._running:  # an engine is replaced, and that waits
            return
        self._running = True
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
            self._running = False

    def take_busy_seconds(self) -> float:
        """Seconds in which something was being generated since the last call."""
        busy, self._busy = self._busy, 0.0
        return busy

    @property
    def filters(self) -> bool:
        """Whether groups are scored, and dropped, as they are finished."""
        return self._keep is not None

    def take_dropped(self) -> tuple[dict[str, float], int]:
        """What the filter has dropped since the last call, as metrics, and the tokens of it."""
        values, tokens = self._dropped.metrics() if self.filters else {}, self._dropped_tokens
        self._dropped, self._dropped_tokens = Dropped(), 0
        return values, tokens

    def cursor(self) -> dict[str, Any]:
        """Where the prompts stand; those before it are trained, dropped or under way."""
        return self._prompts.state()

    def ends_soon(self) -> bool:
        """In training: whether the next step's samples are not there yet, and the engines are still full of such."""
        if self.ledger.next(self._served + 1) is not None or not self._generating:
            return False
        try:
            engines = self._engines.metrics()
        except WorkerError:  # found lost, and replaced, where its samples are waited for
            return False
        return sum(engine["running"] for engine in engines.values()) >= FULL * self._samples

    def trained(self) -> None:
        """The step is over, and what it made is served."""
        self._served = self._run.state.policy_version
        self.ledger.trained()

    def take(self) -> list[Sample] | None:
        """The samples of the next step, groups numbered from 0; None: not yet."""
        numbers = self.ledger.take(self._run.state.policy_version)
        if numbers is None:
            return None
        return [
            replace(sample, group=place)
            for place, number in enumerate(numbers)
            for sample in self._finished.pop(number)
        ]

    def _finish(self, number: int, samples: list[Sample]) -> None:
        """All samples of a group are there: it waits to be trained, unless the filter drops it."""
        if self._keep is not None:
            self._run.score(samples)
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
                f"rollout {self._run.state.rollout}: since the batch before, {self._dropped}",
                hint=TOO_LITTLE,
            )

    @property
    def _missing(self) -> int:
        """Groups that are neither trained, nor taken for training, nor under way, of all that will be trained."""
        spec = self._run.job.spec.rollout
        there = self._run.state.rollout * spec.batch_size + self.ledger.in_training + len(self.ledger.pending)
        return spec.num_rollout * spec.batch_size - there

    def _row(self) -> tuple[int, PromptRow]:
        """The next group's number and prompt: first those that a commit says are to be generated anew."""
        if self._again:
            number = self._again.pop(0)
            return number, self._prompts.at(number)
        return self._prompts.drawn, self._prompts.next(1)[0]

    def _start(self) -> None:
        spec = self._run.job.spec
        while self.ledger.room() > 0 and self._missing > 0:
            number, row = self._row()
            rollout, group = divmod(number, spec.rollout.batch_size)
            samples = make_samples(
                [row], spec.rollout.n_samples_per_prompt, job_seed=self._run.seed, stage="train",
                rollout=rollout, first_group=group,
            )  # fmt: skip
            loads = [sum(each) for each in zip(*(one.loads for one in self._generating.values()), strict=True)]
            self.ledger.start([number], self._served)
            self._generating[number] = self._engines.submit(
                samples, self._sampling, self._run.retriever_url, loads=loads
            )


def _turn(run: Run, pump: Pump) -> dict[str, float]:
    """One step of training. Returns its numbers."""
    state = run.state
    with run.timer.phase("generate"):
        samples = _wait_for_batch(run, pump)
    dropped, dropped_tokens = pump.take_dropped()
    if not pump.filters:
        with run.timer.phase("reward"):
            run.score(samples)
    scored = run.end_scoring()
    engines = run.engines
    assert engines is not None
    engines.ranks_hold_version = False  # they change from here on until the next version is served
    with run.timer.phase("train"):
        advantages = advantages_of(samples, run.job.spec.algorithm, run.ranks.token_signals)
        if not advantages:
            raise RolloutFailedError(f"rollout {state.rollout}: none of its {len(samples)} samples can be trained on")
        try:
            values = rollout_metrics(samples, run.em_label) | scored | dropped | train_step(run, samples, advantages)
        except NonFiniteError as error:
            run.health.not_finite(error, state, None)
            raise
    tokens = sum(sum(sample.loss_mask) for sample in samples) + dropped_tokens
    values |= staleness_of(samples, state.policy_version)
    with run.timer.phase("generate"):
        let_end(run, pump, PATIENCE * run.timer.seconds("train"))
    state.add_seconds("generate", run.timer.seconds("generate"))
    state.rollout += 1
    state.tokens_generated += tokens
    run.sync_weights()
    pump.trained()
    state.data, state.pending = pump.cursor(), [{NUMBER: number} for number in pump.ledger.pending]
    values["tokens_per_second"] = tokens / max(sum(run.timer.seconds(p) for p in ("generate", "train", "sync")), 1e-9)
    keep_completions(run, samples, advantages)
    run.recorder.prometheus.generated(tokens, statuses_of(samples))
    return values


def let_end(run: Run, pump: Pump, patience: float) -> None:
    """Wait up to `patience` seconds for the next step's samples where they are about to end.

    New weights cost what they interrupt: all tokens so far are read again, and samples started meanwhile share the
    engine with what is left. So once nothing else is to be done than to wait for them, samples that end nearly at the
    same time are let end. Where a few long ones are left, the engines have room, and new samples come first.
    """
    start = time.monotonic()
    while pump.ends_soon() and time.monotonic() - start < patience:
        pump(TICK_SECONDS / 20)
        run.beat()


def _wait_for_batch(run: Run, pump: Pump) -> list[Sample]:
    limit = float(run.job.spec.rollout.timeout_seconds)
    start = time.monotonic()
    while True:
        pump(0.0)
        samples = pump.take()
        if samples is not None:
            return samples
        pump(TICK_SECONDS / 10)
        run.beat_or_stop()
        if time.monotonic() - start > limit:
            raise RolloutFailedError(
                f"rollout {run.state.rollout}: its samples were not there within spec.rollout.timeoutSeconds = "
                f"{limit:.0f}"
            )
