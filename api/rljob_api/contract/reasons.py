"""Every reason that the operator gives, in conditions and Events. docs/concepts/operator.md lists them; a test holds
the two together."""

from enum import StrEnum


class Reason(StrEnum):
    """Reasons of conditions; those marked E are Events as well."""

    # Accepted
    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"  # E
    # Accepted, ResourcesApplied
    CHILD_REFUSED = "ChildRefused"  # E
    NAME_CONFLICT = "NameConflict"  # E
    APPLIED = "Applied"
    # RetrieverReady
    RETRIEVER_READY = "RetrieverReady"  # E
    RETRIEVER_STARTING = "RetrieverStarting"
    RETRIEVER_TIMEOUT = "RetrieverStartTimeout"  # E
    RETRIEVER_FAILING = "RetrieverFailing"  # E
    RETRIEVER_SILENT = "RetrieverSilent"  # E
    WRONG_ENVIRONMENT = "WrongEnvironment"  # E
    PORT_TAKEN = "PortTaken"  # E
    SCALED_DOWN = "ScaledDown"
    # Admitted
    WAITING_FOR_ADMISSION = "WaitingForAdmission"
    INADMISSIBLE = "Inadmissible"  # E
    KUEUE_MISSING = "KueueMissing"  # E
    ADMITTED = "Admitted"  # E
    EVICTED = "Evicted"  # E
    # ClusterReady
    KUBERAY_MISSING = "KubeRayMissing"  # E
    WAITING_FOR_RETRIEVER = "WaitingForRetriever"
    WAITING_FOR_CLEANUP = "WaitingForCleanup"
    WAITING_FOR_BACKOFF = "WaitingForBackoff"
    PODS_STARTING = "PodsStarting"
    UNSCHEDULABLE = "Unschedulable"  # E
    IMAGE_PULL = "ImagePullFailed"  # E
    CONFIG_ERROR = "ContainerConfigError"  # E
    CRASHING = "ContainerCrashing"  # E
    CLUSTER_READY = "ClusterReady"  # E
    POD_LOST = "PodLost"  # E
    NO_ATTEMPT = "NoAttempt"
    # RolloutScaled
    SCALING = "RolloutScaling"  # E
    SCALED = "RolloutScaled"  # E
    SCALING_REFUSED = "ScalingRefused"  # E
    # Training
    NOT_REPORTED = "NotReported"
    TRAINING = "Training"  # E
    STOPPED = "Stopped"
    # Stalled
    WORKER_STALLED = "WorkerStalled"  # E
    DRIVER_SILENT = "DriverSilent"  # E
    PROGRESSING = "Progressing"
    # RewardFailing
    REWARD_FAILING = "RewardFailing"  # E
    # Suspended
    NOT_SUSPENDED = "NotSuspended"
    SUSPENDING = "Suspending"  # E
    SUSPENDED = "Suspended"  # E
    RESUMED = "Resumed"  # E
    PAUSED = "Paused"  # E
    # Learning health; each is also the type of its condition
    REWARD_STALLED = "RewardStalled"  # E
    ENTROPY_COLLAPSED = "EntropyCollapsed"  # E
    MISMATCH_HIGH = "MismatchHigh"  # E
    LENGTH_EXPLODING = "ResponseLengthExploding"  # E
    NON_FINITE = "NonFinite"  # E
    HEALTHY = "Healthy"
    # Complete, Failed
    NOT_FINISHED = "NotFinished"
    SUCCEEDED = "Succeeded"  # E
    TARGET_REACHED = "TargetReached"  # E
    UNHEALTHY = "LearningHealth"  # E
    BACKOFF_LIMIT = "BackoffLimitExceeded"  # E
    USER_ERROR = "UserError"  # E
    FAILURE_RULE = "FailureRule"  # E
    DEADLINE = "DeadlineExceeded"  # E
    # Events alone
    ATTEMPT_STARTED = "AttemptStarted"
    ATTEMPT_FAILED = "AttemptFailed"
    ATTEMPT_SUSPENDED = "AttemptSuspended"
    ROLLED_BACK = "RolledBack"
    CLEANUP_TIMEOUT = "CleanupTimeout"


HEALTH = frozenset(
    {
        Reason.REWARD_STALLED, Reason.ENTROPY_COLLAPSED, Reason.MISMATCH_HIGH, Reason.LENGTH_EXPLODING,
        Reason.NON_FINITE, Reason.REWARD_FAILING, Reason.WORKER_STALLED, Reason.DRIVER_SILENT, Reason.RETRIEVER_SILENT,
        Reason.WRONG_ENVIRONMENT, Reason.PORT_TAKEN, Reason.PAUSED, Reason.UNHEALTHY, Reason.ROLLED_BACK,
    }
)  # fmt: skip
"""Reasons of learning health, of rewards that fail, of stalls and of wrong environments: Events, and Warnings."""
EVENTS = HEALTH | frozenset(
    {
        Reason.INVALID_SPEC, Reason.CHILD_REFUSED, Reason.NAME_CONFLICT, Reason.RETRIEVER_READY,
        Reason.RETRIEVER_TIMEOUT,
        Reason.RETRIEVER_FAILING, Reason.KUBERAY_MISSING, Reason.UNSCHEDULABLE, Reason.IMAGE_PULL,
        Reason.SCALING, Reason.SCALED, Reason.SCALING_REFUSED,
        Reason.INADMISSIBLE, Reason.KUEUE_MISSING, Reason.ADMITTED, Reason.EVICTED,
        Reason.CONFIG_ERROR, Reason.CRASHING, Reason.CLUSTER_READY, Reason.POD_LOST, Reason.TRAINING,
        Reason.SUSPENDING, Reason.SUSPENDED, Reason.RESUMED, Reason.SUCCEEDED, Reason.TARGET_REACHED,
        Reason.BACKOFF_LIMIT, Reason.USER_ERROR, Reason.FAILURE_RULE, Reason.DEADLINE,
        Reason.ATTEMPT_STARTED, Reason.ATTEMPT_FAILED,
        Reason.ATTEMPT_SUSPENDED, Reason.CLEANUP_TIMEOUT,
    }
)  # fmt: skip
"""Reasons that an Event is written for."""
WARNINGS = HEALTH | frozenset(
    {
        Reason.INVALID_SPEC, Reason.CHILD_REFUSED, Reason.NAME_CONFLICT, Reason.RETRIEVER_TIMEOUT,
        Reason.RETRIEVER_FAILING,
        Reason.KUBERAY_MISSING, Reason.UNSCHEDULABLE, Reason.IMAGE_PULL, Reason.CONFIG_ERROR, Reason.CRASHING,
        Reason.POD_LOST, Reason.BACKOFF_LIMIT, Reason.USER_ERROR, Reason.FAILURE_RULE, Reason.DEADLINE,
        Reason.ATTEMPT_FAILED, Reason.SCALING_REFUSED, Reason.INADMISSIBLE, Reason.KUEUE_MISSING,
        Reason.CLEANUP_TIMEOUT,
    }
)  # fmt: skip
"""Reasons whose Event is a Warning."""
UNHEALTHY, PAUSED, ROLLED_BACK = 5, 6, 7
"""Exit codes of a driver whose learning went wrong; after the last two the attempt has not failed."""
EXIT_CODES = {
    1: "the driver failed",
    2: "the driver found a mistake in the job (exit 2)",
    3: "the driver lost its Lease (exit 3)",
    4: "the driver was suspended after a commit (exit 4)",
    5: "learning went wrong (exit 5)",
    6: "learning went wrong; paused after a commit (exit 6)",
    7: "learning went wrong; rolled back to an earlier commit (exit 7)",
}
"""What the driver's exit codes mean."""
