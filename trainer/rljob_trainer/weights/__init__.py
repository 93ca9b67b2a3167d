"""Weights on their way from the trainer to the engines: arrays, digests."""

from rljob_trainer.weights.arrays import to_array, to_tensor
from rljob_trainer.weights.digest import weights_digest

__all__ = ["to_array", "to_tensor", "weights_digest"]
