"""Reinforcement learning that generates while it trains (placement `async`).

The engines always have groups under way, `placement.maxStaleness` steps ahead of the trainer at most; new weights
interrupt what is generated for the time of the sync, and it goes on with them: every token keeps its version.
What a commit holds of this is the numbers of the groups under way: they are generated anew after a resume.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rljob_trainer.backends.errors import NonFiniteError
from rljob_trainer.data.prompts import PromptRow, PromptSource
from rljob_trainer.loops.engines import EngineGroup, Generating
from rljob_trainer.loops.rl import (
    RolloutFailedError,
    end_turn,
    evaluate_if_due,
    keep_completions,
    statuses_of,
    train_step,
)
from rljob_trainer.loops.run import Run
from rljob_trainer.loops.samples import advantages_of, make_samples, rollout_metrics, sampling_params, staleness_of
from rljob_trainer.loops.staleness import Ledger
from rljob_trainer.loops.waiting import TICK_SECONDS
from rljob_trainer.rollout.types import Sample

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
            values = _turn(run, pump)
            every = spec.checkpoint.save_interval
            done = end_turn(run, values, due=bool(every) and state.rollout % every == 0, beside=pump.take_busy_seconds)
    state.stage = "Evaluate"
    run.commit()


class Pump:
    """Keeps groups under way and collects them. It runs wherever the loop waits for something."""

    def __init__(self, run: Run, engines: EngineGroup, prompts: PromptSource) -> None:
        spec = run.job.spec
        self._run, self._engines, self._prompts = run, engines, prompts
        staleness = 1 if spec.placement.max_staleness is None else spec.placement.max_staleness
        self.ledger = Ledger(spec.rollout.batch_size, staleness)
        self._sampling = sampling_params(spec.rollout.sampling)
        self._generating: dict[int, Generating] = {}
        self._finished: dict[int, list[Sample]] = {}
        self._running = False
        self._busy, self._looked = 0.0, time.monotonic()
        self._again = [int(entry[NUMBER]) for entry in run.state.pending]
        prompts.restore({})
        self._next = run.state.rollout * spec.rollout.batch_size + len(self._again)
        self._rows: dict[int, PromptRow] = {}
        for number, row in enumerate(prompts.next(self._next)):
            if number in self._again:
                self._rows[number] = row

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
                    self._finished[number] = generating.results()
                    del self._generating[number], self._rows[number]
                    self.ledger.finish(number)
            if timeout and self._generating:
                next(iter(self._generating.values())).poll(timeout)
        finally:
            self._running = False

    def take_busy_seconds(self) -> float:
        """Seconds in which something was being generated since the last call."""
        busy, self._busy = self._busy, 0.0
        return busy

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

    def _start(self) -> None:
        spec, version = self._run.job.spec, self._run.state.policy_version
        last = spec.rollout.num_rollout * spec.rollout.batch_size
        while self.ledger.room() > 0 and (self._again or self._next < last):
            if self._again:
                number = self._again.pop(0)
            else:
                number, self._next = self._next, self._next + 1
                self._rows[number] = self._prompts.next(1)[0]
            rollout, group = divmod(number, spec.rollout.batch_size)
            samples = make_samples(
                [self._rows[number]], spec.rollout.n_samples_per_prompt, job_seed=self._run.seed, stage="train",
                rollout=rollout, first_group=group,
            )  # fmt: skip
            loads = [sum(each) for each in zip(*(one.loads for one in self._generating.values()), strict=True)]
            self.ledger.start([number], version)
            self._generating[number] = self._engines.submit(
                samples, self._sampling, self._run.retriever_url, loads=loads
            )


def _turn(run: Run, pump: Pump) -> dict[str, float]:
    """One step of training. Returns its numbers."""
    state = run.state
    with run.timer.phase("generate"):
        samples = _wait_for_batch(run, pump)
    waited = run.timer.seconds("generate")
    with run.timer.phase("reward"):
        run.score(samples)
    engines = run.engines
    assert engines is not None
    engines.may_send = False  # the ranks' weights change from here on until the next version is served
    with run.timer.phase("train"):
        advantages = advantages_of(samples, run.job.spec.algorithm, run.ranks.token_signals)
        if not advantages:
            raise RolloutFailedError(f"rollout {state.rollout}: none of its {len(samples)} samples can be trained on")
        try:
            values = rollout_metrics(samples, run.em_label) | train_step(run, samples, advantages)
        except NonFiniteError as error:
            run.health.not_finite(error, state, None)
            raise
    tokens = sum(sum(sample.loss_mask) for sample in samples)
    values |= staleness_of(samples, state.policy_version)
    state.rollout += 1
    state.tokens_generated += tokens
    state.add_seconds("generate", waited)
    run.sync_weights()
    pump.ledger.trained()
    state.pending = [{NUMBER: number} for number in pump.ledger.pending]
    values["tokens_per_second"] = tokens / max(sum(run.timer.seconds(p) for p in ("generate", "train", "sync")), 1e-9)
    keep_completions(run, samples, advantages)
    run.recorder.prometheus.generated(tokens, statuses_of(samples))
    return values


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
