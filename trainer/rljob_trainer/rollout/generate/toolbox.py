"""The job's tools: calling them, over HTTP or in this process, within limits."""

import asyncio
import inspect
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from rljob.types import Sample
from rljob_api.contract import environment_variables as variables
from rljob_api.errors import UserError
from rljob_api.v1alpha1.rollout import ToolSpec, ToolsSpec

from rljob_trainer.hooks import load_function
from rljob_trainer.http_caller import CallError, HttpCaller
from rljob_trainer.rollout.generate.tool_calls import Schema, ToolCall

FIELD = "spec.rollout.generate.tools.functions"
MODELS_FAULT = frozenset({400, 409, 413, 422})
"""HTTP statuses that say something about the arguments: the model is told, and goes on."""


class ToolError(Exception):
    """What the model did wrong, or what a tool says to it; it is shown to the model."""


class ToolAwayError(Exception):
    """A tool that does not answer, or not as it should: nothing the model could mend."""


class Toolbox:
    """Calls tools. `limit` bounds the calls under way; each may take `timeoutSeconds`, retries included.

    Raises UserError, at construction, for schemas, functions and tokens that cannot be had.
    """

    def __init__(self, spec: ToolsSpec, limit: asyncio.Semaphore) -> None:
        self._spec, self._limit = spec, limit
        self._schemas: dict[str, Schema] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._callers: dict[str, HttpCaller] = {}
        self._open = False
        self.calls = self.errors = self.failures = 0
        for number, tool in enumerate(spec.functions):
            path = f"{FIELD}[{number}]"
            self._schemas[tool.name] = Schema(tool, path)
            if tool.function is not None:
                self._functions[tool.name] = _function(tool.function, f"{path}.function")
            elif tool.url is not None:
                headers = _headers(tool, number)
                self._callers[tool.name] = HttpCaller(
                    tool.url, timeout=spec.timeout_seconds, proxy=spec.proxy, headers=headers
                )

    async def open(self) -> None:
        """Ready for calls; again is harmless."""
        if not self._open:
            self._open = True
            for caller in self._callers.values():
                await caller.__aenter__()

    async def close(self) -> None:
        """Close connections."""
        for caller in self._callers.values():
            await caller.__aexit__(None, None, None)

    async def call(self, call: ToolCall, sample: Sample) -> str:
        """The tool's answer as text. Raises ToolError and ToolAwayError."""
        self.calls += 1
        try:
            self._check(call)
            async with self._limit:
                caller = self._callers.get(call.name)
                if caller is not None:
                    return await self._post(caller, call)
                return await self._run(self._functions[call.name], call, sample)
        except ToolError:
            self.errors += 1
            raise
        except ToolAwayError:
            self.failures += 1
            raise

    def _check(self, call: ToolCall) -> None:
        if call.problem is not None:
            raise ToolError(call.problem)
        schema = self._schemas.get(call.name)
        if schema is None:
            raise ToolError(f"There is no tool {call.name[:64]!r}; there are: {', '.join(self._schemas)}.")
        if (problem := schema.problem(call.arguments)) is not None:
            raise ToolError(problem)

    async def _post(self, caller: HttpCaller, call: ToolCall) -> str:
        try:
            answer = await caller.post({"name": call.name, "arguments": call.arguments}, text=True)
        except CallError as error:
            if error.status in MODELS_FAULT:
                raise ToolError(error.answer or str(error)) from None
            raise ToolAwayError(f"tool {call.name}: {error}") from None
        if isinstance(answer, dict) and isinstance(answer.get("error"), str):
            raise ToolError(answer["error"])
        return _text(answer["result"] if isinstance(answer, dict) and "result" in answer else answer)

    async def _run(self, function: Callable[..., Any], call: ToolCall, sample: Sample) -> str:
        try:
            async with asyncio.timeout(self._spec.timeout_seconds) as limit:
                return _text(await function(call.arguments, sample))
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its answer
            if limit.expired():
                reason = f"tool {call.name} gave no answer within {self._spec.timeout_seconds:g} s"
                raise ToolAwayError(reason) from None
            raise ToolError(f"{type(error).__name__}: {error}") from None


def offers(spec: ToolsSpec) -> list[Mapping[str, Any]]:
    """The tools as chat templates take them. UserError for schemas that are none."""
    return [Schema(tool, f"{FIELD}[{number}]").offer(tool) for number, tool in enumerate(spec.functions)]


def _function(import_path: str, path: str) -> Callable[..., Any]:
    function = load_function(import_path, path)
    if not inspect.iscoroutinefunction(function):
        raise UserError(f"{path}: {import_path} is not a coroutine function", hint="async def f(arguments, sample)")
    try:
        inspect.signature(function).bind({}, None)
    except TypeError as error:
        raise UserError(f"{path}: {import_path} cannot be called with (arguments, sample): {error}") from None
    return function


def _headers(tool: ToolSpec, number: int) -> dict[str, str]:
    if tool.token is None:
        return {}
    variable = tool.token.env or variables.tool_token(number)
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(f"{FIELD}[{number}].token: the environment variable {variable} is not set")
    return {"Authorization": f"Bearer {token}"}


def _text(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
