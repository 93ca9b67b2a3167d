"""Rewards: functions that score a sample, and running them within their time limit."""

from rljob_trainer.rewards.failures import RewardAwayError, ScoreReport
from rljob_trainer.rewards.score import RewardScorer, score

__all__ = ["RewardAwayError", "RewardScorer", "ScoreReport", "score"]
