"""`spec.sft`: supervised fine-tuning, alone or as the warm start of reinforcement learning."""

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, PositiveFloat, PositiveInt
from rljob_api.v1alpha1.data import SftDataset
from rljob_api.v1alpha1.optimizer import OptimizerSpec


class SftOptimizerSpec(OptimizerSpec):
    """Optimizer of supervised fine-tuning."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""


class SftSpec(ApiModel):
    """Supervised fine-tuning on demonstrations; loss (cross entropy) on the trained tokens only."""

    dataset: SftDataset
    """Demonstrations."""
    batch_size: PositiveInt = 128
    """Rows (packed sequences when packing) per optimizer step over all ranks."""
    num_steps: PositiveInt | None = None
    """Optimizer steps. Give this or `numEpochs`."""
    num_epochs: PositiveFloat | None = None
    """Passes over the data. Give this or `numSteps`."""
    max_sequence_length: PositiveInt = 8096
    """Longer rows are left out, counted and reported."""
    packing: bool = False
    """Pack several rows into one sequence, without attention across rows."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (non-reentrant)."""
    optimizer: SftOptimizerSpec = Field(default_factory=SftOptimizerSpec)
    """Optimizer of this stage; the states are not carried over to reinforcement learning."""
