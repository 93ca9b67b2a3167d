"""`spec.trainer`: backend, ranks, parallelism, batches."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.catalogue.backends import BACKENDS
from rljob_api.v1alpha1.base import ApiModel, FreeMap, PositiveInt, one_of
from rljob_api.v1alpha1.pods import PodOverrides

Degree = Annotated[int, Field(ge=1, le=1024)]


class Parallelism(ApiModel):
    """Model parallelism, as Megatron names it. Data parallelism is what is left of the ranks."""

    tensor: Degree = 1
    """Tensor parallel size (TP)."""
    pipeline: Degree = 1
    """Pipeline parallel size (PP)."""
    context: Degree = 1
    """Context parallel size (CP)."""
    expert: Degree = 1
    """Expert parallel size (EP), over data-parallel ranks."""
    sequence: bool = False
    """Sequence parallelism over the tensor-parallel ranks; needs `tensor` > 1."""


class Recompute(ApiModel):
    """Activation recomputation, as Megatron names it."""

    granularity: Literal["none", "full", "selective"] = "none"
    """What is recomputed: nothing, whole layers, or the attention core."""
    method: Literal["uniform", "block"] = "uniform"
    """How layers are chosen, for `full`."""
    num_layers: PositiveInt = 1
    """Layers per chunk (uniform) or recomputed per stage (block)."""


class FsdpSpec(ApiModel):
    """Fully sharded data parallelism (FSDP2)."""

    reshard_after_forward: bool = True
    """Free gathered parameters after the forward pass (like ZeRO-3); off keeps them (like ZeRO-2)."""
    cpu_offload: bool = False
    """Keep parameters, gradients and optimizer states in host memory."""


class TrainerSpec(ApiModel):
    """The training ranks."""

    backend: Annotated[str, one_of(BACKENDS)] = "megatron"
    """`megatron` on GPUs; `fsdp`: FSDP2 over transformers models, on GPU (NCCL) or CPU (gloo)."""
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pods (nodes) of the trainer group."""
    gpus_per_replica: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of one trainer pod, one rank each; 0 on CPU."""
    ranks_per_replica: Annotated[int, Field(ge=1, le=64)] = 1
    """On CPU: ranks in one trainer pod. With GPUs there is one rank per GPU."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """TP, PP, CP, EP."""
    global_batch_size: PositiveInt | None = None
    """Samples per optimizer step; by default rollout.batchSize × rollout.nSamplesPerPrompt ÷ numStepsPerRollout."""
    num_steps_per_rollout: PositiveInt | None = None
    """Optimizer steps per rollout; by default rollout.batchSize × rollout.nSamplesPerPrompt ÷ globalBatchSize, or 1."""
    micro_batch_size: PositiveInt = 1
    """Samples per forward pass and rank; ignored with `useDynamicBatchSize`."""
    use_dynamic_batch_size: bool = False
    """Fill each forward pass up to `maxTokensPerGpu` tokens."""
    max_tokens_per_gpu: PositiveInt = 4608
    """Tokens per forward pass and rank, for `useDynamicBatchSize`."""
    balance_data: bool = False
    """Share samples out to data-parallel ranks by the work that their lengths make, instead of in turn."""
    recompute: Recompute = Field(default_factory=Recompute)
    """Activation recomputation."""
    fsdp: FsdpSpec = Field(default_factory=FsdpSpec)
    """Settings of the `fsdp` backend."""
    megatron_args: FreeMap = Field(default_factory=dict)
    """Arguments passed to Megatron as they are."""
    threads_per_rank: PositiveInt = 1
    """Compute threads of one rank on CPU (and of one torch engine). Part of what a run's numbers depend on."""
    pod: PodOverrides = Field(default_factory=PodOverrides)
    """Pods of the trainer group."""
    head_pod: PodOverrides = Field(default_factory=PodOverrides)
    """The Ray head, which runs the driver."""
    rank_timeout_seconds: PositiveInt = 1800
    """A rank that does not answer within this time fails the attempt, by name."""


class PlacementSpec(ApiModel):
    """Where trainer and rollout run, and whether they wait for one another."""

    type: Literal["disaggregated", "colocated", "async"] = "disaggregated"
    """`disaggregated`: own GPUs each. `colocated`: the same GPUs in turn. `async`: own GPUs, generating ahead."""
    max_staleness: Annotated[int, Field(ge=0, le=64)] | None = None
    """For `async`: how many policy versions a sample may lag behind; 1 by default."""
    offload_trainer: bool = False
    """For `colocated`: the trainer's weights, gradients and optimizer states are in host memory while the engines
    generate, which can then take more of the GPUs. Costs moving them twice a rollout."""
