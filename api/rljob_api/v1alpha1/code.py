"""`spec.code`: the user's own modules for hooks, and how they reach the pods."""

from typing import Annotated

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, DnsName, FolderStr, PathStr, SecretKeyRef, ShortStr, Url

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=128)]


class GitSource(ApiModel):
    """A git repository, checked out once per attempt."""

    url: Url
    """Address of the repository."""
    revision: ShortStr
    """Commit (best), tag or branch."""
    path: FolderStr | None = None
    """Folder within the repository that goes on the Python path; the root by default."""
    token: SecretKeyRef | None = None
    """Access token for a private repository."""


class CodeConfigMap(ApiModel):
    """A ConfigMap whose keys are file names."""

    name: DnsName
    """Name of the ConfigMap in the job's namespace."""


class CodeVolume(ApiModel):
    """A folder of a PersistentVolumeClaim."""

    claim_name: DnsName
    """Name of the claim in the job's namespace."""
    path: FolderStr | None = None
    """Folder within the claim."""


class CodeSpec(ApiModel):
    """Modules for custom generate, reward and TIS functions. At most one source; all land first on the Python path."""

    files: Annotated[dict[FileName, Annotated[str, Field(max_length=65536)]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Modules written in the manifest: file name to content. They travel in a ConfigMap; 512 KiB in all."""
    config_map: CodeConfigMap | None = None
    """Modules from an existing ConfigMap. Locally give the folder with `rljob run --code`."""
    persistent_volume_claim: CodeVolume | None = None
    """Modules from a volume. Locally give the folder with `rljob run --code`."""
    git: GitSource | None = None
    """Modules from a git repository."""
    image_path: PathStr | None = None
    """Folder of the trainer image that goes on the Python path."""
    pip_requirements: Annotated[list[ShortStr], Field(max_length=64)] = Field(default_factory=list)
    """Requirements installed before the driver starts; pin versions."""
