"""What the driver tells of its end: one word by which the operator decides what follows."""

import errno

import pytest
from rljob_api.errors import UserError
from rljob_trainer.checkpoint import CommitError
from rljob_trainer.cluster.failure_reason import reason_of
from rljob_trainer.workers.waiting import WorkerFailedError, WorkerLostError, WorkerStuckError

RAYS_GUESSES = (
    "rank 1 died while training: The actor died unexpectedly before finishing this task. There are some potential "
    "root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force."
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("spec.data.train.path: no such file"), "UserError"),
        (WorkerLostError("rank 1", RAYS_GUESSES), "WorkerLost"),
        (WorkerStuckError("engine 0", "engine 0 has not answered for 130 s"), "WorkerStuck"),
        (WorkerFailedError("rank 0", "rank 0 failed: OutOfMemoryError: CUDA out of memory. Tried …"), "OutOfMemory"),
        (WorkerLostError("rank 0", "Task was killed due to the node running low on memory."), "OutOfMemory"),
        (MemoryError(), "OutOfMemory"),
        (WorkerFailedError("rank 0", "DistBackendError: NCCL error in: NCCLUtils.hpp"), "CommunicationError"),
        (WorkerFailedError("rank 1", "[gloo/transport/tcp/pair.cc:534] closed"), "CommunicationError"),
        (OSError(errno.ENOSPC, "No space left on device"), "StorageFull"),
        (RuntimeError("9 of 10 steps were done"), "DriverFailed"),
    ],
)  # fmt: skip
def test_reason(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_the_cause_of_a_cause_counts() -> None:
    error = CommitError("the commit of step 3 was not written")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert reason_of(error) == "StorageFull"
