"""What a user's own code imports: samples, generations and what hooks are handed.

These names are stable. Everything in `rljob_api`, `rljob_trainer` and `rljob_operator` may move.
"""

from rljob.algorithms import (
    AdvantageEstimator,
    AdvantageInputs,
    Advantages,
    PolicyLoss,
    PolicyLossInputs,
    PolicyLossOutputs,
)
from rljob.types import Engine, Generation, Sample, SamplingParams, Session

__all__ = [
    "AdvantageEstimator",
    "AdvantageInputs",
    "Advantages",
    "Engine",
    "Generation",
    "PolicyLoss",
    "PolicyLossInputs",
    "PolicyLossOutputs",
    "Sample",
    "SamplingParams",
    "Session",
]
