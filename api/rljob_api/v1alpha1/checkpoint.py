"""`spec.checkpoint` and `spec.storage`: commits, exports, and where they lie."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.v1alpha1.base import (
    ApiModel,
    DnsName,
    FolderStr,
    NonNegativeInt,
    PathStr,
    PositiveInt,
    Quantity,
    SecretKeyRef,
    ShortStr,
)

AccessMode = Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]


class HubPush(ApiModel):
    """Upload of each saved model to the Hub."""

    model_id: ShortStr
    """Repository on the Hub."""
    strategy: Literal["every_save", "end"] = "every_save"
    """Push each commit, or the final model alone."""
    private: bool = True
    """Create the repository as private."""
    token: SecretKeyRef
    """Hub token (read as HF_PUSH_TOKEN)."""


class WarmStart(ApiModel):
    """Start from another job's commit."""

    job: DnsName
    """RLJob in the same namespace, or name of its directory beside this one's."""
    commit: ShortStr | None = None
    """Name of the commit; the last by default."""
    optimizer: bool = False
    """Take over the optimizer's states as well; the commit must be of the stage that this job begins with."""


class CheckpointSpec(ApiModel):
    """One commit holds model, optimizer, RNG, data cursor, pending samples and policy version; manifest last."""

    save_interval: NonNegativeInt = 20
    """Rollouts between commits; 0: only at the end. A commit is also made at the end and on suspend."""
    sft_save_interval: NonNegativeInt = 0
    """SFT steps between commits; 0: only at the end of SFT."""
    save_at_epoch_end: bool = False
    """Commit at the end of each epoch as well."""
    keep: PositiveInt = 2
    """Commits kept; the last good one is never removed first."""
    asynchronous: bool = False
    """Write in the background while training goes on."""
    save_hf: bool = True
    """Export the final model in Hugging Face format beside the last commit."""
    load: PathStr | None = None
    """Start the actor from these weights: Hugging Face folder, Megatron checkpoint, commit, or another job's directory.
    While it is missing or empty: from `refLoad`, else from the model."""
    ref_load: PathStr | None = None
    """Reference model for the KL, of the same kinds; by default the weights before reinforcement learning."""
    warm_start: WarmStart | None = None
    """Start from another job's commit."""
    overwrite: Literal["Never", "Resume", "Replace"] = "Resume"
    """A directory with commits of this job: refuse, resume from the last, or start anew (earlier ones kept aside)."""
    hub: HubPush | None = None
    """Upload to the Hub."""


class ClaimSpec(ApiModel):
    """A PersistentVolumeClaim: one that exists, or one to make."""

    claim_name: DnsName | None = None
    """Existing PersistentVolumeClaim, which other jobs may share."""
    size: Quantity = "10Gi"
    """Least size of the claim that is created when none is named; it is kept until the RLJob is deleted. It may grow
    while the job runs, where the class allows it. A claim that somebody has expanded stays as large as it is."""
    storage_class_name: DnsName | None = None
    """Class of that claim; the cluster's default otherwise."""
    access_modes: Annotated[list[AccessMode], Field(min_length=1, max_length=3)] = Field(default=["ReadWriteMany"])
    """Access modes of that claim; several nodes need ReadWriteMany."""


class StorageSpec(ClaimSpec):
    """Where the job's directory lies. On a laptop: `runs/<name>`."""

    sub_path: FolderStr | None = None
    """Folder of the claim that holds the job's directory; by default `<namespace>/<name>`."""
