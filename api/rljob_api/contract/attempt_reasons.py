"""Why an attempt ended: what each reason of `status.attempts[].reason` means, who sees it, and what follows from it.

The driver reports a reason with its exit code, the operator adds what it alone can see (a pod that was killed for
memory, a node that is gone), and the table of docs/operations.md is this one; a test holds them together.
"""

from dataclasses import dataclass
from typing import Literal

from rljob_api.v1alpha1.status import AttemptReason

Follows = Literal["Complete", "Resume", "Pause", "Continue", "Retry", "RetryUncounted", "Fail"]
"""What comes after an attempt:

- `Complete`: the job is done.
- `Resume`: the next attempt begins once the job may run again; nothing is counted.
- `Pause`: as `Resume`, once the user has resumed the job.
- `Continue`: the next attempt begins at once; nothing is counted.
- `Retry`: the next attempt begins after a pause, and `lifecycle.backoffLimit` counts the failure.
- `RetryUncounted`: as `Retry`, not counted.
- `Fail`: the job fails.

`lifecycle.failureRules` may choose another one for `Retry` and `RetryUncounted`.
"""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one reason says."""

    seen_by: str
    means: str
    follows: Follows = "Retry"
    pod_may_know_more: bool = False
    """Whether a pod of the attempt may know the cause behind it, such as a container that was killed for memory."""


ATTEMPT_REASONS: dict[AttemptReason, Meaning] = {
    "Succeeded": Meaning("driver", "exit 0 and every step done", "Complete"),
    "Suspended": Meaning(
        "driver, or the wait for it",
        "by `lifecycle.suspend`, or SIGTERM after which it committed",
        "Resume",
        pod_may_know_more=True,
    ),
    "Paused": Meaning("driver", "[learning health](learning-health.md) paused the job after a commit", "Pause"),
    "RolledBack": Meaning(
        "driver", "[learning health](learning-health.md) asks to go on from an earlier commit", "Continue"
    ),
    "Unhealthy": Meaning("driver", "[learning health](learning-health.md) gave the job up", "Fail"),
    "Preempted": Meaning(
        "pod, Kueue",
        "the scheduler took a pod away for another of higher priority, or Kueue evicted the attempt",
        "RetryUncounted",
    ),
    "Evicted": Meaning("pod", "evicted by the kubelet (node pressure) or through the API (a drain)"),
    "NodeLost": Meaning("pod", "the node is gone, tainted or shuts down"),
    "OutOfMemory": Meaning(
        "pod, driver", "a container was OOMKilled, Ray killed a worker for memory, or CUDA ran out of it"
    ),
    "CommunicationError": Meaning("driver", "NCCL, Gloo or a process group failed", pod_may_know_more=True),
    "WorkerLost": Meaning("driver", "a rank or engine died; nothing else says why", pod_may_know_more=True),
    "WorkerStuck": Meaning(
        "driver, operator",
        "a rank or engine did not answer in time, or the driver stopped reporting; nothing else says why",
        pod_may_know_more=True,
    ),
    "StorageFull": Meaning("driver", "no space or quota left where the job writes"),
    "LeaseLost": Meaning(
        "driver", "another driver holds the job's Lease, or the apiserver was away for longer than it lasts"
    ),
    "PodLost": Meaning("operator", "the head is gone, nothing says why", pod_may_know_more=True),
    "StartTimeout": Meaning(
        "operator, driver",
        "no report within 30 minutes of a start whose pods could be scheduled; Ray resources that never came",
    ),
    "RayJobFailed": Meaning(
        "KubeRay", "the RayJob was refused, failed or was deleted without the driver's word", pod_may_know_more=True
    ),
    "DriverFailed": Meaning("driver", "any other error (exit 1)", pod_may_know_more=True),
    "UserError": Meaning(
        "driver", "a mistake in the job (exit 2): a file that is not there, a hook that cannot be imported", "Fail"
    ),
    "DeadlineExceeded": Meaning("operator", "`activeDeadlineSeconds` is over", "Fail"),
}
