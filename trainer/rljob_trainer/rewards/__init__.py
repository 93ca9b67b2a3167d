"""Rewards: functions that score a sample, and running them within their time limit."""

from rljob_trainer.rewards.score import RewardScorer, ScoreReport, score

__all__ = ["RewardScorer", "ScoreReport", "score"]
