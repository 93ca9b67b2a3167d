"""What a user may say of the pods of one group: a curated list of pod fields, and one raw patch for the rest."""

from typing import Annotated, Literal

from pydantic import Field

from rljob_api.v1alpha1.base import (
    ApiModel,
    DnsLabel,
    DnsName,
    EnvName,
    FreeMap,
    LabelMap,
    NonNegativeInt,
    Quantity,
    SecretKey,
    ShortStr,
    StringMap,
)

Resources = Annotated[dict[Annotated[str, Field(max_length=128)], Quantity], Field(max_length=16)]


class ResourceRequirements(ApiModel):
    """Compute resources of the group's main container, as in a Kubernetes container."""

    requests: Resources = Field(default_factory=dict)
    """What the scheduler reserves, such as `cpu: 500m`."""
    limits: Resources = Field(default_factory=dict)
    """What the container may use at most. GPUs are added from the group's GPU count and need not be written here."""


class SecretEnvSource(ApiModel):
    """A key of a Secret, for an environment variable."""

    name: DnsName
    """Name of the Secret."""
    key: SecretKey
    """Key within the Secret."""


class EnvVar(ApiModel):
    """One environment variable: a literal value, or a key of a Secret."""

    name: EnvName
    """Name of the variable; those that begin with RLJOB_ are the operator's."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Literal value. Never a secret: it is stored in the RLJob in the clear."""
    secret_key_ref: SecretEnvSource | None = None
    """Take the value from a Secret of the job's namespace."""


class Toleration(ApiModel):
    """A Kubernetes toleration."""

    key: ShortStr | None = None
    """Taint key; empty matches every key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared."""
    value: ShortStr | None = None
    """Taint value, for `Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty matches every effect."""
    toleration_seconds: NonNegativeInt | None = None
    """For `NoExecute`: seconds the pod stays."""


class PodOverrides(ApiModel):
    """What is said of the pods of one group, on top of what the operator renders."""

    resources: ResourceRequirements = Field(default_factory=ResourceRequirements)
    """Requests and limits of the main container."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(default_factory=list)
    """Additional environment variables of the main container (NCCL settings, proxies, …)."""
    labels: LabelMap = Field(default_factory=dict)
    """Additional pod labels."""
    annotations: StringMap = Field(default_factory=dict)
    """Additional pod annotations."""
    node_selector: LabelMap = Field(default_factory=dict)
    """Node labels that the pods need."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that the pods tolerate."""
    affinity: FreeMap | None = None
    """Node and pod affinity, as `affinity` of a Kubernetes pod."""
    topology_spread_constraints: Annotated[list[FreeMap], Field(max_length=16)] = Field(default_factory=list)
    """How the pods spread over zones or nodes, as in a Kubernetes pod. Without `labelSelector`: the group's."""
    scheduler_name: DnsName | None = None
    """Scheduler of the pods; with `lifecycle.gang` KubeRay sets it."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pods."""
    runtime_class_name: DnsName | None = None
    """RuntimeClass of the pods."""
    service_account_name: DnsLabel | None = None
    """ServiceAccount instead of the one that the operator creates (which may write one progress ConfigMap alone)."""
    shm_size: Quantity = "16Gi"
    """Size limit of the memory-backed /dev/shm. It counts towards the memory the pod uses, not what it requests."""
    rdma: Annotated[dict[Annotated[str, Field(max_length=128)], Quantity], Field(max_length=8)] = Field(
        default_factory=dict
    )
    """RDMA device resources, such as `rdma/hca: "1"`."""
    pod_template_patch: FreeMap | None = None
    """Strategic-merge patch on the rendered pod template, for whatever the fields above leave out."""
