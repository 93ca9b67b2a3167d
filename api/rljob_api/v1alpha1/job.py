"""The RLJob itself."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rljob_api.v1alpha1.algorithm import AlgorithmSpec
from rljob_api.v1alpha1.base import ApiModel, NonNegativeInt, StringMap
from rljob_api.v1alpha1.checkpoint import CheckpointSpec, StorageSpec
from rljob_api.v1alpha1.code import CodeSpec
from rljob_api.v1alpha1.data import DataSpec
from rljob_api.v1alpha1.evaluation import EvaluationSpec
from rljob_api.v1alpha1.images import ImagesSpec
from rljob_api.v1alpha1.lifecycle import LifecycleSpec
from rljob_api.v1alpha1.model import ModelSpec
from rljob_api.v1alpha1.optimizer import OptimizerSpec
from rljob_api.v1alpha1.output import OutputSpec
from rljob_api.v1alpha1.retriever import RetrieverSpec
from rljob_api.v1alpha1.reward import RewardSpec
from rljob_api.v1alpha1.rollout import RolloutSpec
from rljob_api.v1alpha1.sft import SftSpec
from rljob_api.v1alpha1.status import RLJobStatus
from rljob_api.v1alpha1.tracking import TrackingSpec
from rljob_api.v1alpha1.trainer import PlacementSpec, TrainerSpec

GROUP = "rljob.io"
VERSION = "v1alpha1"
API_VERSION: Literal["rljob.io/v1alpha1"] = "rljob.io/v1alpha1"
KIND: Literal["RLJob"] = "RLJob"
PLURAL = "rljobs"
MAX_NAME_LENGTH = 40


class RLJobSpec(ApiModel):
    """What to train, on what, and how."""

    mode: Literal["Train", "Evaluate", "Generate"] = "Train"
    """`Train`; `Evaluate`: score the evaluation sets only; `Generate`: rollout and reward only, samples written."""
    model: ModelSpec
    """The policy model: weights, tokenizer, precision."""
    code: CodeSpec = Field(default_factory=CodeSpec)
    """The user's own modules for hooks."""
    data: DataSpec = Field(default_factory=DataSpec)
    """Prompts and their preparation."""
    sft: SftSpec | None = None
    """Supervised fine-tuning, alone or as the warm start of reinforcement learning."""
    algorithm: AlgorithmSpec = Field(default_factory=AlgorithmSpec)
    """Advantages, losses, KL, TIS."""
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    """Generation: batch arithmetic, sampling, engines."""
    reward: RewardSpec | None = None
    """What scores a sample. Required for reinforcement learning."""
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    """Optimizer of reinforcement learning."""
    trainer: TrainerSpec = Field(default_factory=TrainerSpec)
    """Backend, ranks, parallelism, batches."""
    placement: PlacementSpec = Field(default_factory=PlacementSpec)
    """Where trainer and rollout run, and whether they wait for one another."""
    retriever: RetrieverSpec | None = None
    """The retrieval service that answers searches; none is deployed without this section."""
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    """Held-out data sets scored during and after training."""
    output: OutputSpec = Field(default_factory=OutputSpec)
    """What a generate-only job writes."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """Commits and exports."""
    storage: StorageSpec = Field(default_factory=StorageSpec)
    """Where the job's directory lies."""
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)
    """Where numbers and completions are reported."""
    lifecycle: LifecycleSpec = Field(default_factory=LifecycleSpec)
    """Suspend, retries, deadlines, health."""
    images: ImagesSpec = Field(default_factory=ImagesSpec)
    """Container images."""
    seed: NonNegativeInt = 42
    """Seed of initialisation, shuffling and sampling."""
    deterministic: bool | None = None
    """Bit-for-bit repeatable results; by default on CPU only, where it costs little."""


class ObjectMeta(ApiModel):
    """Kubernetes object metadata; what the trainer does not need is carried along unread."""

    model_config = ApiModel.model_config | {"extra": "allow"}

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=MAX_NAME_LENGTH)]
    """Name: a DNS-1035 label of at most 40 characters, since RayJob and pod names are derived from it."""
    namespace: Annotated[str, Field(max_length=63)] | None = None
    """Namespace."""
    labels: StringMap = Field(default_factory=dict)
    """Labels."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""
    uid: str | None = None
    """Set by the apiserver."""
    generation: int | None = None
    """Set by the apiserver: counts changes of the spec."""


class RLJob(ApiModel):
    """A reinforcement-learning (or supervised fine-tuning) job of a language model."""

    api_version: Literal["rljob.io/v1alpha1"] = API_VERSION
    """Version of this API."""
    kind: Literal["RLJob"] = KIND
    """Kind."""
    metadata: ObjectMeta
    """Standard object metadata."""
    spec: RLJobSpec
    """What to train, on what, and how."""
    status: RLJobStatus | None = None
    """What the operator has seen; written by the operator alone."""

    def to_manifest(self) -> dict[str, Any]:
        """The job without its status, as a user would write it with every default spelt out."""
        return {key: value for key, value in self.to_api().items() if key != "status"}
