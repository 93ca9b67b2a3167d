"""Tools in chat templates: offering them in the prompt, and showing the model what they answered."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rljob_trainer.config.errors import UserError

_MARK = "\ue0a3rljob-turn\ue0a4"


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

    The text is what the model's chat template writes between two turns of the assistant. Raises UserError, at
    construction, for a template that drops results of tools.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = [str(token) for token in getattr(tokenizer, "all_special_tokens", ())]
        self._closing = sorted(special, key=len, reverse=True)
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("spec.rollout.generate.type: tools needs a chat template", hint="spec.model.chatTemplate")
        if "rljob" not in self.text(["rljob"], ""):
            raise UserError("spec.rollout.generate.type: the model's chat template does not show what tools answer")

    def text(self, results: Sequence[str], turn: str) -> str:
        """The observation after `turn` (its text): without the token that closes it when the turn ends with it."""
        messages = [
            {"role": "user", "content": "."},
            {"role": "assistant", "content": _MARK},
            *({"role": "tool", "content": result} for result in results),
        ]
        try:
            whole = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # noqa: BLE001 - a template may raise whatever it likes
            raise UserError(f"spec.rollout.generate.type: the chat template refuses tool results: {error}") from None
        _, found, after = str(whole).partition(_MARK)
        if not found:
            raise UserError("spec.rollout.generate.type: the chat template drops what the assistant wrote")
        closing = next((token for token in self._closing if token and after.startswith(token)), "")
        return after[len(closing) :] if closing and turn.endswith(closing) else after
