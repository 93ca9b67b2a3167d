"""Waiting for actors: always with a limit, and a dead or stuck one is named."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from rljob_api.errors import UserError, missing_package

from rljob_trainer.training.errors import NonFiniteError
from rljob_trainer.watch.watchdog import WAITS

TICK_SECONDS = 1.0
logger = logging.getLogger(__name__)


class WorkerError(RuntimeError):
    """A rank or an engine is lost, stuck or failed. `worker` is its name, such as `rank 1` or `engine 0`."""

    def __init__(self, worker: str, message: str) -> None:
        super().__init__(message)
        self.worker = worker


class WorkerLostError(WorkerError):
    """Its process is gone."""


class WorkerStuckError(WorkerError):
    """It did not answer in time."""


class WorkerFailedError(WorkerError):
    """It raised."""


def each(
    calls: Mapping[str, Any], *, limit: float, doing: str, tick: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Any]]:
    """Results of `calls` (worker name → ObjectRef) as they come, `(name, result)`.

    `tick` is called about once a second while waiting; what it raises ends the wait.
    Raises WorkerLostError, WorkerFailedError or, after `limit` seconds, WorkerStuckError; UserError and
    NonFiniteError as they were raised.
    """
    names = {ref: name for name, ref in calls.items()}
    waiting = list(names)
    start = time.monotonic()
    with WAITS.waiting(list(calls), doing) as done:
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=TICK_SECONDS)
            for ref in ready:
                done(names[ref])
                yield names[ref], result_of(ref, names[ref], doing)
            tick()
            for ref in waiting:
                check_signs_of_life(names[ref])
            if waiting and not ready and time.monotonic() - start > limit:
                late = ", ".join(sorted(names[ref] for ref in waiting))
                raise WorkerStuckError(names[waiting[0]], f"{late} did not finish {doing} within {limit:.0f} s")


def check_signs_of_life(name: str) -> None:
    """Raises WorkerStuckError when the watchdog has given `name` up."""
    if (stall := WAITS.lost.get(name)) is not None:
        raise WorkerStuckError(name, stall.sentence())


def gather(
    calls: Mapping[str, Any], *, limit: float, doing: str, tick: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """All results of `calls` by worker name, in the order of `calls`; see `each`."""
    results = dict(each(calls, limit=limit, doing=doing, tick=tick))
    return {name: results[name] for name in calls}


def result_of(ref: Any, name: str, doing: str) -> Any:
    """The result of one finished call of the worker `name`; raises as `each` does."""
    try:
        return ray.get(ref, timeout=60.0)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | NonFiniteError):
            raise cause from None
        if isinstance(cause, ModuleNotFoundError):
            raise missing_package(cause, name) from None
        logger.error("%s failed while %s\n%s", name, doing, error)
        raise WorkerFailedError(name, f"{name} failed while {doing}: {type(cause).__name__}: {cause}") from None
    except RayActorError as error:
        raise WorkerLostError(name, f"{name} died while {doing}: {_first_line(error)}") from None
    except (GetTimeoutError, RayError) as error:
        raise WorkerLostError(name, f"the result of {name} ({doing}) is lost: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return " ".join(text.split("\n")[:3]) if text else type(error).__name__
