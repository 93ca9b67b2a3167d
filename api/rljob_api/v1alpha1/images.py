"""`spec.images`: container images; by default those the operator was installed with."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, DnsName

Image = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")]


class ImagesSpec(ApiModel):
    """Container images of the job. Used on a cluster only."""

    trainer: Image | None = None
    """Head, trainer and rollout pods."""
    retriever: Image | None = None
    """Retriever pods."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Kubernetes image pull policy."""
    pull_secrets: Annotated[list[DnsName], Field(max_length=8)] = Field(default_factory=list)
    """Names of image pull Secrets."""
