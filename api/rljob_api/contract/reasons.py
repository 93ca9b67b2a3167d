"""Every reason that the operator gives, in conditions and Events. docs/concepts/operator.md lists them; a test holds
the two together. Why an attempt ended: `attempt_reasons`."""

from enum import StrEnum
from typing import Literal


class Reason(StrEnum):
    """Reasons of conditions. One with a type of Event is an Event as well, of that type."""

    event: Literal["Normal", "Warning"] | None

    def __new__(cls, value: str, event: Literal["Normal", "Warning"] | None = None) -> "Reason":
        """`value` is the member's value."""
        member = str.__new__(cls, value)
        member._value_, member.event = value, event
        return member

    # Accepted
    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec", "Warning"
    # Accepted, ResourcesApplied
    CHILD_REFUSED = "ChildRefused", "Warning"
    NAME_CONFLICT = "NameConflict", "Warning"
    APPLIED = "Applied"
    # RetrieverReady
    RETRIEVER_READY = "RetrieverReady", "Normal"
    RETRIEVER_STARTING = "RetrieverStarting"
    RETRIEVER_TIMEOUT = "RetrieverStartTimeout", "Warning"
    RETRIEVER_FAILING = "RetrieverFailing", "Warning"
    RETRIEVER_SILENT = "RetrieverSilent", "Warning"
    WRONG_ENVIRONMENT = "WrongEnvironment", "Warning"
    PORT_TAKEN = "PortTaken", "Warning"
    SCALED_DOWN = "ScaledDown"
    # Admitted
    WAITING_FOR_ADMISSION = "WaitingForAdmission"
    INADMISSIBLE = "Inadmissible", "Warning"
    KUEUE_MISSING = "KueueMissing", "Warning"
    ADMITTED = "Admitted", "Normal"
    EVICTED = "Evicted", "Normal"
    # ClusterReady
    KUBERAY_MISSING = "KubeRayMissing", "Warning"
    WAITING_FOR_RETRIEVER = "WaitingForRetriever"
    WAITING_FOR_CLEANUP = "WaitingForCleanup"
    WAITING_FOR_BACKOFF = "WaitingForBackoff"
    PODS_STARTING = "PodsStarting"
    UNSCHEDULABLE = "Unschedulable", "Warning"
    IMAGE_PULL = "ImagePullFailed", "Warning"
    CONFIG_ERROR = "ContainerConfigError", "Warning"
    CRASHING = "ContainerCrashing", "Warning"
    CLUSTER_READY = "ClusterReady", "Normal"
    POD_LOST = "PodLost", "Warning"
    NO_ATTEMPT = "NoAttempt"
    # RolloutScaled
    SCALING = "RolloutScaling", "Normal"
    SCALED = "RolloutScaled", "Normal"
    SCALING_REFUSED = "ScalingRefused", "Warning"
    # Training
    NOT_REPORTED = "NotReported"
    TRAINING = "Training", "Normal"
    STOPPED = "Stopped"
    # Stalled
    WORKER_STALLED = "WorkerStalled", "Warning"
    DRIVER_SILENT = "DriverSilent", "Warning"
    PROGRESSING = "Progressing"
    # RewardFailing
    REWARD_FAILING = "RewardFailing", "Warning"
    # Suspended
    NOT_SUSPENDED = "NotSuspended"
    SUSPENDING = "Suspending", "Normal"
    SUSPENDED = "Suspended", "Normal"
    RESUMED = "Resumed", "Normal"
    PAUSED = "Paused", "Warning"
    # Learning health; each is also the type of its condition
    REWARD_STALLED = "RewardStalled", "Warning"
    ENTROPY_COLLAPSED = "EntropyCollapsed", "Warning"
    MISMATCH_HIGH = "MismatchHigh", "Warning"
    LENGTH_EXPLODING = "ResponseLengthExploding", "Warning"
    NON_FINITE = "NonFinite", "Warning"
    HEALTHY = "Healthy"
    # Complete, Failed
    NOT_FINISHED = "NotFinished"
    SUCCEEDED = "Succeeded", "Normal"
    TARGET_REACHED = "TargetReached", "Normal"
    UNHEALTHY = "LearningHealth", "Warning"
    BACKOFF_LIMIT = "BackoffLimitExceeded", "Warning"
    USER_ERROR = "UserError", "Warning"
    FAILURE_RULE = "FailureRule", "Warning"
    DEADLINE = "DeadlineExceeded", "Warning"
    # Events alone
    ATTEMPT_STARTED = "AttemptStarted", "Normal"
    ATTEMPT_FAILED = "AttemptFailed", "Warning"
    ATTEMPT_SUSPENDED = "AttemptSuspended", "Normal"
    ROLLED_BACK = "RolledBack", "Warning"
    CLEANUP_TIMEOUT = "CleanupTimeout", "Warning"


EVENTS = frozenset(reason for reason in Reason if reason.event)
"""Reasons that an Event is written for."""
WARNINGS = frozenset(reason for reason in Reason if reason.event == "Warning")
"""Reasons whose Event is a Warning."""
