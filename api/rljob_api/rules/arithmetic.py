"""The arithmetic of a job: samples, optimizer steps, ranks and GPUs. Pure functions of the spec.

One rollout makes `rollout.batchSize × rollout.nSamplesPerPrompt` samples; they are trained on in
`trainer.numStepsPerRollout` optimizer steps of `trainer.globalBatchSize` samples each, none left over.
"""

import math
from dataclasses import dataclass

from rljob_api.catalogue.engines import ENGINES
from rljob_api.rules.mode import GENERATES, RL, TRAINS
from rljob_api.rules.sizes import BATCHES, WHOLE_COPIES
from rljob_api.v1alpha1.job import RLJobSpec


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The resolved batch sizes. samples_per_rollout == global_batch_size × num_steps_per_rollout, always."""

    prompts_per_rollout: int
    samples_per_prompt: int
    samples_per_rollout: int
    global_batch_size: int
    num_steps_per_rollout: int


def trains_rl(spec: RLJobSpec) -> bool:
    """Whether the job trains by reinforcement learning."""
    return bool(RL.value(spec))


def trains(spec: RLJobSpec) -> bool:
    """Whether the job has trainer ranks at all."""
    return bool(TRAINS.value(spec))


def generates(spec: RLJobSpec) -> bool:
    """Whether the job needs engines: for rollouts, or for evaluation sets."""
    return bool(GENERATES.value(spec))


def batch_plan(spec: RLJobSpec) -> BatchPlan:
    """Resolve `globalBatchSize` and `numStepsPerRollout`, computing what is left out.

    Raises FieldError, with the numbers, when samples would be left over.
    """
    for rule in BATCHES:
        rule.require(spec)
    prompts, group = spec.rollout.batch_size, spec.rollout.n_samples_per_prompt
    samples = prompts * group
    batch = spec.trainer.global_batch_size or samples // (spec.trainer.num_steps_per_rollout or 1)
    return BatchPlan(prompts, group, samples, batch, samples // batch)


def rl_steps(spec: RLJobSpec) -> int:
    """Optimizer steps of reinforcement learning. Raises FieldError when the batch arithmetic does not hold."""
    return spec.rollout.num_rollout * batch_plan(spec).num_steps_per_rollout if trains_rl(spec) else 0


def sft_steps(spec: RLJobSpec, rows: int | None = None) -> int | None:
    """Optimizer steps of SFT; with `numEpochs` they depend on `rows` of the data set (packed sequences when packing).

    None when `rows` is needed and not given. The last batch of the last epoch is a full one: batches run across
    epochs, so that no row is dropped.
    """
    if spec.sft is None or not trains(spec):
        return 0
    if spec.sft.num_steps is not None:
        return spec.sft.num_steps
    if spec.sft.num_epochs is None or rows is None:
        return None
    return max(1, math.ceil(rows * spec.sft.num_epochs / spec.sft.batch_size))


def evaluate_steps(spec: RLJobSpec) -> int:
    """Steps of an evaluate-only job: one for each set."""
    return len(spec.evaluation.datasets) if spec.mode == "Evaluate" else 0


def generate_steps(spec: RLJobSpec, prompts: int) -> int:
    """Steps of a generate-only job over `prompts` prompts: rollouts, the last of which may be smaller."""
    if spec.mode != "Generate":
        return 0
    return min(spec.rollout.num_rollout, math.ceil(prompts / spec.rollout.batch_size))


def total_steps(spec: RLJobSpec, sft_rows: int | None = None, prompts: int | None = None) -> int | None:
    """Steps of the whole job: of the optimizer (SFT and RL), or sets to evaluate, or rollouts to generate.

    None while the rows of an SFT by epochs, or the prompts of a generate-only job, are not known.
    """
    if spec.mode == "Evaluate":
        return evaluate_steps(spec)
    if spec.mode == "Generate":
        return None if prompts is None else generate_steps(spec, prompts)
    sft = sft_steps(spec, sft_rows)
    return None if sft is None else sft + rl_steps(spec)


def ranks_per_replica(spec: RLJobSpec) -> int:
    """Ranks of one trainer pod: one per GPU, or `ranksPerReplica` on CPU."""
    return spec.trainer.gpus_per_replica or spec.trainer.ranks_per_replica


def world_size(spec: RLJobSpec) -> int:
    """Trainer ranks of the job."""
    return spec.trainer.replicas * ranks_per_replica(spec)


def model_parallel_size(spec: RLJobSpec) -> int:
    """Ranks that hold one copy of the model: TP × PP × CP."""
    parallel = spec.trainer.parallelism
    return parallel.tensor * parallel.pipeline * parallel.context


def data_parallel_size(spec: RLJobSpec) -> int:
    """Copies of the model that train side by side: ranks ÷ (TP × PP × CP). Raises FieldError when not whole."""
    WHOLE_COPIES.require(spec)
    return world_size(spec) // model_parallel_size(spec)


def data_parallel_rank(spec: RLJobSpec, rank: int) -> int:
    """Which share of a batch `rank` gets. Ranks are numbered with the tensor coordinate fastest, then context, data
    and pipeline, as Megatron has them; those that hold slices of one copy of the model get the same share."""
    parallel = spec.trainer.parallelism
    return rank // (parallel.tensor * parallel.context) % data_parallel_size(spec)


def trainer_gpus(spec: RLJobSpec) -> int:
    """GPUs of the trainer group."""
    return spec.trainer.replicas * spec.trainer.gpus_per_replica if trains(spec) else 0


def engine_count(spec: RLJobSpec) -> int:
    """Inference engines of the job."""
    return spec.rollout.replicas if generates(spec) else 0


def shares_gpus(spec: RLJobSpec) -> bool:
    """Whether engines live in the trainer's pods, on its GPUs."""
    return spec.placement.type == "colocated" and generates(spec) and trains(spec)


def engines_sleep(spec: RLJobSpec) -> bool:
    """Whether engines leave their GPUs to the ranks while those train."""
    return shares_gpus(spec) and ENGINES[spec.rollout.engine].sleeps


def rollout_pods(spec: RLJobSpec) -> int:
    """Pods of the rollout group: one per engine, none where engines live with the trainer."""
    return 0 if shares_gpus(spec) else engine_count(spec)


def rollout_gpus(spec: RLJobSpec) -> int:
    """GPUs that engines use; colocated with the trainer they are the trainer's own."""
    if not generates(spec):
        return 0
    if shares_gpus(spec) and spec.rollout.gpus_per_engine == 0:
        return trainer_gpus(spec)
    return spec.rollout.replicas * spec.rollout.gpus_per_engine


def engine_gpus(spec: RLJobSpec) -> int:
    """GPUs of one engine: as given, or an equal share of the trainer's where engines live on those."""
    if shares_gpus(spec) and spec.rollout.gpus_per_engine == 0:
        return trainer_gpus(spec) // spec.rollout.replicas
    return spec.rollout.gpus_per_engine


def samples_under_way(spec: RLJobSpec) -> int:
    """Most samples of training that one engine generates at once; evaluations may be larger."""
    prompts = max(spec.rollout.batch_size, spec.rollout.over_sampling_batch_size or 0)
    return math.ceil(prompts * (1 + max_staleness(spec)) / spec.rollout.replicas) * spec.rollout.n_samples_per_prompt


def max_staleness(spec: RLJobSpec) -> int:
    """Policy versions by which a sample may lag behind: 0 where engines and trainer take turns."""
    if spec.placement.type != "async":
        return 0
    return 1 if spec.placement.max_staleness is None else spec.placement.max_staleness


def retriever_gpus(spec: RLJobSpec) -> int:
    """GPUs of the retriever Deployment, at most."""
    if (retriever := spec.retriever) is None:
        return 0
    return (retriever.autoscaling.max_replicas if retriever.autoscaling else retriever.replicas) * retriever.gpus


def total_gpus(spec: RLJobSpec) -> int:
    """GPUs that the job asks of the cluster."""
    return trainer_gpus(spec) + (0 if shares_gpus(spec) else rollout_gpus(spec)) + retriever_gpus(spec)


def max_context_length(spec: RLJobSpec) -> int:
    """Longest training rollout in tokens, prompt and response: the given limit, or the sum of both limits."""
    if spec.rollout.max_context_length is not None:
        return spec.rollout.max_context_length
    prompt = spec.data.train.max_prompt_length if spec.data.train else 0
    return prompt + spec.rollout.sampling.max_response_length


def engine_context_length(spec: RLJobSpec, positions: int) -> int:
    """Longest sequence of an engine in tokens: of training and of every evaluation; what is not asked for explicitly
    ends at the model's `positions`."""
    if spec.rollout.max_context_length is not None:
        return spec.rollout.max_context_length
    lengths = [] if spec.mode == "Evaluate" else [max_context_length(spec)]
    for dataset in spec.evaluation.datasets if spec.mode != "Generate" else ():
        sampling = dataset.sampling or spec.evaluation.sampling
        lengths.append(dataset.max_prompt_length + sampling.max_response_length)
    return min(max(lengths), positions)
