"""Why a run failed, in one word: what the driver's last report tells the operator besides its sentence.

The operator adds what only it can see (a pod's container killed for memory, an evicted pod) and decides what follows.
"""

import errno
import re
from collections.abc import Iterator

from rljob_api.errors import UserError
from rljob_api.v1alpha1.status import AttemptReason

_TEXT: tuple[tuple[AttemptReason, re.Pattern[str]], ...] = (
    (
        "OutOfMemory",
        # Not Ray's list of guesses on every lost worker, which has "OOM killer" in it.
        re.compile(r"out of memory\b|OutOfMemoryError|running low on memory|\bMemoryError|[Cc]annot allocate memory"),
    ),
    ("StorageFull", re.compile(r"No space left on device|Disk quota exceeded")),
    (
        "CommunicationError",
        re.compile(r"\bNCCL\b|\bnccl[A-Z]|ProcessGroup|DistBackendError|DistNetworkError|\b[Gg]loo\b"),
    ),
)
_TYPES: dict[str, AttemptReason] = {
    "LeaseLostError": "LeaseLost",
    "PlacementError": "StartTimeout",
    "WorkerStuckError": "WorkerStuck",
    "WorkerLostError": "WorkerLost",
    "EngineLimitError": "WorkerLost",
}
"""By name: importing the classes would import Ray."""


def reason_of(error: BaseException) -> AttemptReason:
    """The reason that fits an exception of the run, by its type, its errno and what it says."""
    if isinstance(error, UserError):
        return "UserError"
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return "OutOfMemory"
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return "StorageFull"
        text = f"{type(each).__name__}: {each}"
        for reason, pattern in _TEXT:
            if pattern.search(text):
                return reason
    return next((_TYPES[type(e).__name__] for e in _chain(error) if type(e).__name__ in _TYPES), "DriverFailed")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    next_one: BaseException | None = error
    while next_one is not None and id(next_one) not in seen:
        seen.add(id(next_one))
        yield next_one
        next_one = next_one.__cause__
