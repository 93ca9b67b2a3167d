"""Megatron's process groups, over the process group of the ranks."""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from rljob_trainer.training import process_group
from rljob_trainer.training.megatron.layout import Layout


def start(layout: Layout, seed: int, timeout_seconds: int) -> None:
    """Make the groups, seed the generators, and let metrics be summed over data-parallel ranks (the others of a
    model-parallel group hold the same numbers)."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.tensor,
        distributed_timeout_minutes=max(1, -(-timeout_seconds // 60)),
    )
    model_parallel_cuda_manual_seed(seed)
    process_group.use_group(parallel_state.get_data_parallel_group_gloo(with_context_parallel=False))


def stop() -> None:
    """Forget the groups."""
    process_group.use_group(None)
    parallel_state.destroy_model_parallel()


def from_last_stage[T](value: T) -> T:
    """The last pipeline stage's value, on all stages of the model (collective)."""
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, group=group, group_src=group.size() - 1)
    return box[0]
