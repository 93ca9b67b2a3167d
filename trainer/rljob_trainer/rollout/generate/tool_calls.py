"""What a turn asks of tools: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes and Qwen write it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rljob_api.errors import UserError
from rljob_api.v1alpha1.rollout import ToolSpec

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{OPEN}(.*?)({CLOSE}|\Z)", re.DOTALL)
_THINK_END = "</think>"
_LONGEST_COMPLAINT = 500


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call; with `problem`, one that cannot be made, and why."""

    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def parse_calls(text: str) -> list[ToolCall]:
    """The calls of a turn, in order. What the model wrote while it was thinking (before `</think>`) is no call."""
    return [_call(match[1], closed=bool(match[2])) for match in _CALL.finditer(text.rpartition(_THINK_END)[2])]


def _call(body: str, *, closed: bool) -> ToolCall:
    if not closed:
        return ToolCall(problem=f"The call is not closed by {CLOSE}.")
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        return ToolCall(problem=f"The call is not valid JSON: {error}.")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ToolCall(problem='A call is a JSON object {"name": "…", "arguments": {…}}.')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return ToolCall(problem="The arguments of a call are a JSON object.")
    return ToolCall(call["name"], arguments)


class Schema:
    """The JSON schema of a tool's arguments. References lead nowhere outside it. UserError when it is none."""

    def __init__(self, tool: ToolSpec, path: str) -> None:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
        from referencing import Registry

        self.parameters: Mapping[str, Any] = {"type": "object", "properties": {}} | tool.parameters
        try:
            Draft202012Validator.check_schema(self.parameters)
        except SchemaError as error:
            raise UserError(f"{path}.parameters: not a JSON schema: {error.message}") from None
        if self.parameters["type"] != "object":
            raise UserError(f"{path}.parameters.type: {self.parameters['type']!r} must be object")
        self._validator = Draft202012Validator(self.parameters, registry=Registry())

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with arguments, as a sentence for the model."""
        from jsonschema.exceptions import best_match

        error = best_match(self._validator.iter_errors(arguments))
        if error is None:
            return None
        place = "arguments" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.path)
        return f"Invalid {place}: {error.message[:_LONGEST_COMPLAINT]}."

    def offer(self, tool: ToolSpec) -> dict[str, Any]:
        """The tool as chat templates take it."""
        described = {"name": tool.name, "description": tool.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": described}
