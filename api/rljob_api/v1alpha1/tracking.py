"""`spec.tracking`: where numbers and completions are reported."""

from typing import Annotated

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, NonNegativeInt, PathStr, SecretKeyRef, ShortStr


class WandbSpec(ApiModel):
    """Weights & Biases."""

    project: ShortStr
    """Project."""
    entity: ShortStr | None = None
    """Team or user."""
    run_name: ShortStr | None = None
    """Run name; the job's name by default."""
    offline: bool = False
    """Write locally only."""
    api_key: SecretKeyRef | None = None
    """API key (read as WANDB_API_KEY)."""


class TensorBoardSpec(ApiModel):
    """TensorBoard event files."""

    log_dir: PathStr = "tensorboard"
    """Folder of the event files, beneath the job's directory unless absolute."""


class MlflowSpec(ApiModel):
    """MLflow."""

    tracking_uri: Annotated[str, Field(pattern=r"^(https?://|file:)[^\s]+$", max_length=2048)]
    """Address of the server, or a folder (`file:mlruns`, beneath the job's directory unless absolute)."""
    experiment: ShortStr
    """Experiment."""
    token: SecretKeyRef | None = None
    """Bearer token (read as MLFLOW_TRACKING_TOKEN)."""


class TrackingSpec(ApiModel):
    """Metrics are always written as JSONL into the job's directory and served to Prometheus; the rest is opt-in."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    """Port of the driver's /metrics; 0 serves none. Ranks and engines take ports of their own."""
    log_completions: NonNegativeInt = 4
    """Samples per rollout written to `completions.jsonl` and the trackers, with rewards and policy versions."""
    wandb: WandbSpec | None = None
    """Weights & Biases."""
    tensorboard: TensorBoardSpec | None = None
    """TensorBoard."""
    mlflow: MlflowSpec | None = None
    """MLflow."""
