"""Rewards: scores samples, and reports reward functions that fail."""

import logging

from rljob.types import Sample
from rljob_api.errors import UserError

from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.rewards import RewardAwayError, RewardScorer
from rljob_trainer.rewards.failures import Failures
from rljob_trainer.watch.watchdog import WAITS

logger = logging.getLogger(__name__)


class Scoring:
    """Does nothing for a job without a reward."""

    def __init__(self, context: RunContext, state: LoopState, recorder: Recorder) -> None:
        spec = context.job.spec
        self._state, self._recorder = state, recorder
        self._scorer, self._failures = None, None
        if spec.reward is not None:
            self._scorer = RewardScorer(spec.reward)
            at_once = spec.rollout.batch_size * spec.rollout.n_samples_per_prompt
            self._failures = Failures(spec.reward.functions, at_once)

    def score(self, samples: list[Sample], of: str = "") -> dict[str, float]:
        """Set the samples' rewards. A reward function that fails costs its sample. Failures are reported: those
        of a complete set, which is called `of`, at once; else by `end_of_rollout`.

        Returns what to record with a complete set. Raises UserError or RewardAwayError when there is no reward for
        any sample of the set, or for as many in a row as a rollout has.
        """
        if self._scorer is None or self._failures is None:
            return {}
        with WAITS.waiting(["reward functions"], f"scoring {len(samples)} samples"):
            report = self._scorer.score(samples)
        if report.failures:
            reason, count = report.errors.most_common(1)[0]
            logger.warning(
                "%d of %d samples got failureReward; %d times: %s", report.failures, len(samples), count, reason
            )
        if of:
            try:
                self._failures.evaluated(report, of)
            finally:
                told = self._recorder.reward_failures(report, self._failures, of)
            return told
        try:
            self._failures.scored(report, self._rollout)
        except (UserError, RewardAwayError):
            self.end_of_rollout()
            raise
        return {}

    def end_of_rollout(self) -> dict[str, float]:
        """All samples of this rollout are scored: report how that went. Returns what to record with the rollout."""
        if self._failures is None:
            return {}
        report = self._failures.end_of_rollout(self._rollout)
        return self._recorder.reward_failures(report, self._failures, self._rollout)

    def close(self) -> None:
        """End the processes that score."""
        if self._scorer is not None:
            self._scorer.close()

    @property
    def _rollout(self) -> str:
        return f"rollout {self._state.rollout}"
