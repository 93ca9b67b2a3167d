"""Experiment trackers, opt-in by `spec.tracking`. See `metrics.tracking` for how they are fed."""

from rljob_trainer.metrics.trackers.base import Completion, RunFacts, Tracker

__all__ = ["Completion", "RunFacts", "Tracker"]
