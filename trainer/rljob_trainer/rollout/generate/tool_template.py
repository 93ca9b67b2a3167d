"""Tools in chat templates: offering them in the prompt, and showing the model what they answered."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rljob.types import Generation
from rljob_api.errors import UserError

from rljob_trainer.rollout.generate.chat_turns import Bridge, ChatTurns, Message


def offering(tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> Any:
    """A tokenizer whose chat template always offers `tools`: prompts need not know of them.

    A copy; the one given stays as it is. Raises UserError when there is no template, or one that knows no tools.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise UserError(
            "spec.rollout.generate.tools: the tokenizer has no chat template", hint="spec.model.chatTemplate"
        )
    template = str(tokenizer.get_chat_template(tools=list(tools)))
    if "tools" not in template:
        raise UserError(
            "spec.rollout.generate.tools: the model's chat template does not offer tools",
            hint="give one that does in spec.model.chatTemplate",
        )
    offered = copy.copy(tokenizer)
    # Python's literals are Jinja's.
    offered.chat_template = f"{{%- set tools = {list(tools)!r} %}}{template}"
    return offered


class ToolAnswers:
    """What follows a turn that called tools: the end of the turn, the results, and the next turn opened.

    Raises UserError, at construction, for a template that drops or refuses results of tools.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._turns = ChatTurns(tokenizer)
        if "rljob" not in self._turns.text(_messages(["rljob"], ["rljob_tool"]), generation=False):
            raise UserError("spec.rollout.generate.type: the model's chat template does not show what tools answer")

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        return self._turns.end_ids

    def follow(self, turn: Generation, results: Sequence[str], names: Sequence[str]) -> Bridge:
        """The observation after `turn`: the results of its calls, in their order. `names` are those of the tools."""
        return self._turns.follow(turn, _messages(results, names))


def _messages(results: Sequence[str], names: Sequence[str]) -> list[Message]:
    # Some templates show the tool's name, others want an id of nine characters for each result.
    return [
        {"role": "tool", "content": result, "name": name, "tool_call_id": f"call{number:05d}"}
        for number, (result, name) in enumerate(zip(results, names, strict=True))
    ]
