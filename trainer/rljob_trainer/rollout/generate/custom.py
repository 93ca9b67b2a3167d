"""A generate function of the user's own, by import path."""

import inspect
import logging
from collections.abc import Mapping
from typing import Any

from rljob.types import Engine, EngineError, Sample, SamplingParams
from rljob_api.errors import UserError

from rljob_trainer.hooks import load_function

FIELD = "spec.rollout.generate.function"
SIGNATURE = "async def f(args, sample, sampling, engine) -> Sample"
logger = logging.getLogger(__name__)


class CustomGenerate:
    """Calls `async def f(args, sample, sampling, engine) -> Sample` and holds it to its word.

    What it raises, and a sample that does not keep the rules of `Sample`, costs that sample: status `failed`, the
    reason in `info["error"]`. Losing the engine is not the function's fault and is raised.
    """

    def __init__(self, import_path: str | None, args: Mapping[str, Any]) -> None:
        if import_path is None:
            raise UserError(f"{FIELD} is required with spec.rollout.generate.type: custom.")
        self._function, self._args = load_function(import_path, FIELD), dict(args)
        self._path = import_path
        check_signature(self._function, import_path)

    async def __call__(self, sample: Sample, sampling: SamplingParams, engine: Engine) -> Sample:
        try:
            result = await self._function(dict(self._args), sample, sampling, engine)
        except EngineError:
            raise
        except Exception as error:
            logger.warning("%s failed on group %d sample %d", self._path, sample.group, sample.index, exc_info=True)
            return _failed(sample, f"{type(error).__name__}: {error}")
        if not isinstance(result, Sample):
            return _failed(sample, f"{self._path} returned {type(result).__name__}, not a Sample")
        if problem := problem_of(result):
            return _failed(result, f"{self._path}: {problem}")
        if result.status == "pending":
            result.status = "completed"
        return result


def check_signature(function: Any, import_path: str) -> None:
    """Raises UserError when `function` is no coroutine function of four positional arguments."""
    call = function if inspect.isfunction(function) else getattr(function, "__call__", function)  # noqa: B004
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)):
        raise UserError(f"{FIELD}: {import_path} is not a coroutine function.", hint=f"Write {SIGNATURE}.")
    try:
        inspect.signature(function).bind(None, None, None, None)
    except TypeError as error:
        raise UserError(
            f"{FIELD}: {import_path}{inspect.signature(function)} cannot be called with four arguments: {error}.",
            hint=f"Write {SIGNATURE}.",
        ) from None


def problem_of(sample: Sample) -> str | None:
    """What breaks the rules of `Sample`, if anything does."""
    n = len(sample.response_ids)
    for name in ("loss_mask", "logprobs", "policy_versions"):
        if len(getattr(sample, name)) != n:
            return f"{name} has {len(getattr(sample, name))} entries for {n} response_ids"
    if any(mask not in (0, 1) for mask in sample.loss_mask):
        return "loss_mask has entries other than 0 and 1"
    if sample.status not in ("pending", "completed", "truncated", "aborted", "failed"):
        return f"status {sample.status!r} is none of pending, completed, truncated, aborted, failed"
    return None


def _failed(sample: Sample, reason: str) -> Sample:
    """The sample without a response: half of one is not to be trained on."""
    sample.response_ids, sample.loss_mask, sample.logprobs, sample.policy_versions = [], [], [], []
    sample.response, sample.status = "", "failed"
    sample.info["error"] = reason
    return sample
