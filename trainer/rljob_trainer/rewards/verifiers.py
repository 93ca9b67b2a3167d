"""The verifiers as a worker runs them. Importing this module warms them up: no sample's time limit pays for imports."""

from rljob.types import Sample

from rljob_trainer.rewards import deepscaler as _deepscaler
from rljob_trainer.rewards import maths

math = maths.math


def deepscaler(sample: Sample) -> float:
    """See `rewards.deepscaler`."""
    return _deepscaler.deepscaler(sample.response, sample.label)


maths.warm_up()
