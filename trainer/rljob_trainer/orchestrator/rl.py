"""Reinforcement learning: rollout → reward → advantages → train → sync weights → commit → evaluate → record.

The order of a turn is the same whether rollouts are generated before training or beside it; what differs lies in the
`RolloutSource`.
"""

from collections import Counter

from rljob.types import Sample
from rljob_api.rules.arithmetic import batch_plan

from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.checkpoint.schedule import rollout_due
from rljob_trainer.orchestrator.checkpointer import Checkpointer
from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.evaluate import Evaluator
from rljob_trainer.orchestrator.observer import Observer
from rljob_trainer.orchestrator.scoring import Scoring
from rljob_trainer.orchestrator.workers import Workers, running_samples
from rljob_trainer.rollout.advantages import Credit
from rljob_trainer.rollout.asynchronous import AsynchronousSource, DriverLoop
from rljob_trainer.rollout.samples import advantages_of, rollout_metrics, segments_of, staleness_of, train_batches
from rljob_trainer.rollout.source import Rollout, RolloutFailedError, RolloutSource
from rljob_trainer.rollout.synchronous import SynchronousSource
from rljob_trainer.training.errors import NonFiniteError


class ReinforcementLearning:
    """The stage `RL`."""

    def __init__(
        self,
        context: RunContext,
        state: LoopState,
        workers: Workers,
        scoring: Scoring,
        evaluator: Evaluator,
        checkpointer: Checkpointer,
        observer: Observer,
    ) -> None:
        self._context, self._state, self._spec = context, state, context.job.spec
        self._workers, self._ranks = workers, workers.need_ranks()
        self._scoring, self._evaluator, self._checkpointer = scoring, evaluator, checkpointer
        self._recorder, self._timer, self._health = observer.recorder, observer.timer, observer.health
        self._observer = observer

    def train(self) -> None:
        """Train from rollout `state.rollout` to the last one. Raises Stop when asked to end before."""
        state, total = self._state, self._spec.rollout.num_rollout
        self._recorder.stage("RL", state.rollout, total)
        source = self._make_source()
        self._workers.sync_weights(state.policy_version)
        # Also what a commit just before an evaluation left undone.
        done = self._health.done(state, {}, self._evaluator.if_due())
        self._timer.take()
        with source.running():
            while state.rollout < total and not done:
                self._checkpointer.stop_here()
                done = self._turn(source)
        state.stage = "Evaluate"
        self._checkpointer.commit()

    def _turn(self, source: RolloutSource) -> bool:
        """Train on one rollout, and what follows. Returns whether the target of `lifecycle.earlyStop` is reached.
        Raises Stop when learning health asks for an end."""
        state, timer, total = self._state, self._timer, self._spec.rollout.num_rollout
        cursor = state.data
        values = self._train_on_rollout(source)
        findings = self._health.look(state, values)
        moment = None
        if not self._health.acts(findings):
            if state.rollout < total and rollout_due(self._spec.checkpoint, state.rollout, cursor, state.data):
                self._checkpointer.commit()
            moment = self._evaluator.if_due()
        seconds = timer.take()
        state.add_seconds("rl", seconds["total"] - seconds["evaluate"])
        self._recorder.rollout(state, total, values, seconds, beside=source.take_busy_seconds())
        self._health.act(findings, state, self._checkpointer)
        return self._health.done(state, values, moment)

    def _train_on_rollout(self, source: RolloutSource) -> dict[str, float]:
        """From a rollout to engines that serve what it taught. Returns its numbers; `state` has moved on when it
        returns, and not before, but for the count of optimizer steps.

        A step whose loss or gradient is not finite is not applied, and its rollout is given up: another one, from other
        prompts, is trained on for the steps that are left, as often in a row as
        `lifecycle.health.thresholds.maxReplacements` says (with the policies Ignore and Warn; the others end the
        attempt). So no step is lost, whichever the source. Until those steps are done no commit is made, for weights
        and state are of different rollouts, unless none of the rollout's steps was applied.
        """
        state, timer = self._state, self._timer
        tokens, first = 0, state.step
        while True:
            rollout = source.next()
            tokens += rollout.generated
            values = rollout_metrics(rollout.samples, self._context.em_label) | self._scoring.end_of_rollout()
            values |= rollout.metrics | staleness_of(rollout.samples, state.policy_version)
            with timer.phase("sync"):
                self._workers.leave_gpus_to_ranks()
            source.before_training()
            with timer.phase("train"):
                advantages = self._advantages(rollout)
            try:
                with timer.phase("train"):
                    values |= self._optimize(rollout.samples, advantages, done=state.step - first)
                break
            except NonFiniteError as error:
                self._replace(source, error, untouched=state.step == first)
        self._checkpointer.at_boundary = True
        source.before_sync()
        state.add_seconds("generate", timer.seconds("generate"))
        state.rollout += 1
        state.tokens_generated += tokens
        source.trained()
        self._workers.sync_weights(state.policy_version)
        source.served()
        state.data, state.pending = source.position()
        values["tokens_per_second"] = tokens / max(sum(map(timer.seconds, source.generating)), 1e-9)
        self._record_completions(rollout.samples, advantages)
        self._recorder.prometheus.generated(tokens, Counter(str(sample.status) for sample in rollout.samples))
        return values

    def _advantages(self, rollout: Rollout) -> dict[int, Credit]:
        """What each sample is trained with, by its number. Raises RolloutFailedError when there is none."""
        samples = rollout.samples
        advantages = advantages_of(samples, self._spec.algorithm, self._ranks.token_signals)
        if not advantages:
            reasons = sorted({str(sample.info.get("error", sample.status)) for sample in samples})
            raise RolloutFailedError(
                f"rollout {self._state.rollout}: none of its {len(samples)} samples can be trained on: "
                f"{'; '.join(reasons[:3])}"
            )
        return advantages

    def _optimize(self, samples: list[Sample], advantages: dict[int, Credit], *, done: int = 0) -> dict[str, float]:
        """Optimizer steps on the rollout, but for the first `done`. Returns the mean of their metrics.

        Raises NonFiniteError for a step that was not applied; `state.step` has counted those before it.
        """
        steps = batch_plan(self._spec).num_steps_per_rollout
        batches = train_batches(samples, advantages, steps)
        old = None
        if steps > 1:
            flat = self._ranks.compute_logprobs([sample for batch in batches for sample in batch])
            taken = iter(flat)
            old = [[next(taken) for _ in batch] for batch in batches]
        results = []
        for number, batch in enumerate(batches):
            if number < done:
                continue
            if not batch:
                raise RolloutFailedError(
                    f"rollout {self._state.rollout}: all samples of optimizer step {number} failed"
                )
            step, total = self._state.rollout * steps + number, self._context.rl_steps
            results.append(self._ranks.rl_step(batch, step, total, None if old is None else old[number]))
            self._state.step += 1
        means = {key: sum(result[key] for result in results) / len(results) for key in results[0]}
        return means | {"trained_tokens": sum(result["tokens"] for result in results)}

    def _replace(self, source: RolloutSource, error: NonFiniteError, *, untouched: bool) -> None:
        """Give up the rollout whose step was not finite. `untouched`: whether none of its steps was applied. Raises
        Stop where another one must not take its place."""
        source.discard()
        self._state.data, self._state.pending = source.position()
        self._health.not_finite(error, self._state, self._checkpointer, may_commit=untouched)
        self._workers.sync_weights(self._state.policy_version)  # some sleep, or were replaced
        self._checkpointer.at_boundary = untouched

    def _record_completions(self, samples: list[Sample], advantages: dict[int, Credit]) -> None:
        """The first samples of a rollout, whole."""
        for number, sample in enumerate(samples[: self._spec.tracking.log_completions]):
            segments = segments_of(sample, self._context.data.tokenizer)
            credit = advantages.get(number)
            advantage = None if credit is None else credit.advantage
            self._recorder.completion(self._state, "train", sample, segments, advantage)

    def _make_source(self) -> RolloutSource:
        """The source that fits the placement, at the state's position."""
        context, state, workers, loop = self._context, self._state, self._workers, self._checkpointer
        prompts = context.data.prompts
        if prompts is None:
            raise RuntimeError("reinforcement learning without prompts")
        if self._spec.placement.type != "async":
            return SynchronousSource(
                self._spec.rollout,
                prompts,
                lambda samples, sampling: workers.generate(samples, sampling, context.retriever_url, loop.beat_or_stop),
                self._score,
                self._timer,
                job_seed=context.seed,
                rollout=state.rollout,
                cursor=state.data,
                pending=state.pending,
            )
        engines = workers.need_engines()
        return AsynchronousSource(
            self._spec,
            engines,
            prompts,
            DriverLoop(
                score=self._score,
                running=lambda: running_samples(engines),
                beat=self._observer.beat,
                beat_or_stop=loop.beat_or_stop,
                set_while_waiting=self._observer.set_while_waiting,
            ),
            self._timer,
            job_seed=context.seed,
            retriever_url=context.retriever_url,
            rollout=state.rollout,
            cursor=state.data,
            pending=state.pending,
        )

    def _score(self, samples: list[Sample]) -> None:
        self._scoring.score(samples)
