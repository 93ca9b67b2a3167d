"""What the processes of one test run share: made by the first that needs it, taken away by the last that leaves."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.cluster.run import lock


def folder_of_run(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the run see (under xdist each has a base folder of its own below it)."""
    base = factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@contextlib.contextmanager
def shared(folder: Path, name: str, make: Callable[[], None], take_away: Callable[[], None]) -> Iterator[None]:
    """`make` it unless another process of the run has; `take_away` once nobody uses it any more."""
    users = folder / f"{name}.users"

    def count(change: int) -> int:
        before = int(users.read_text()) if users.exists() else 0
        users.write_text(str(before + change))
        return before + change

    with lock(folder / f"{name}.lock"):
        if count(1) == 1:
            try:
                make()
            except BaseException:
                count(-1)
                raise
    try:
        yield
    finally:
        with lock(folder / f"{name}.lock"):
            if count(-1) == 0:
                take_away()
