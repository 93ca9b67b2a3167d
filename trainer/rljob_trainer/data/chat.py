"""Chat templates: messages as text, and which characters of it the assistant wrote.

A template that marks the assistant's text with `{% generation %}` has the last word. From any other, the turns are
found by rendering: the text that a rollout would start from (the messages before, with the assistant's turn opened)
ends where the turn begins, and the messages up to the turn end where it ends. Where a template writes a turn otherwise
once others follow (Qwen3 drops earlier `<think>` text), a mark in the place of the turn's content shows what stands
around it. What cannot be found so, exactly, raises `TurnsNotFoundError`: a wrong mask is worse than none.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

Message = Mapping[str, Any]
Span = tuple[int, int]
"""Characters from … up to (exclusive)."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MARK = "\ue0a1rljob\ue0a2"
_THINK_END = "</think>"


class TemplateRefusedError(Exception):
    """The template raised an error for these messages."""


class TurnsNotFoundError(Exception):
    """The assistant's text cannot be told apart, exactly, in what the template makes of the messages."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with what it needs to render; it travels between processes."""

    source: str
    """Jinja."""
    special: Mapping[str, str]
    """Names and texts of the special tokens, as templates know them (`bos_token`, …)."""
    closing: tuple[str, ...]
    """Texts of all special tokens: one of them closes a turn."""

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate | None":
        """The template of a transformers tokenizer; None when it has none."""
        if not getattr(tokenizer, "chat_template", None):
            return None
        special = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
        return cls(str(tokenizer.get_chat_template()), special, tuple(map(str, tokenizer.all_special_tokens)))

    @cached_property
    def marked(self) -> bool:
        """Whether the template itself says what the assistant wrote."""
        return _GENERATION.search(self.source) is not None

    def render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The messages as text; `generation` opens a turn of the assistant at the end. Raises TemplateRefusedError."""
        return self._render(messages, generation, spans=False)[0]

    def assistant_spans(self, messages: Sequence[Message], first: int = 0) -> tuple[str, list[Span]]:
        """The messages as text, and the assistant's characters in it: those of message `first` and later ones.

        What a rollout generates: the turn from where the template has opened it up to and with the special token that
        closes it, without white space after that token (unless the template's own marks say otherwise).
        Raises TemplateRefusedError and TurnsNotFoundError.
        """
        if self.marked:
            text, spans = self._marked_spans(messages, first)
        else:
            text, spans = self._found_spans(messages, first)
        last = messages[-1]
        thinks = last["role"] == "assistant" and _THINK_END in str(last["content"])
        if thinks and spans and _THINK_END not in text[spans[-1][0] : spans[-1][1]]:
            raise TurnsNotFoundError("it drops the <think> text of the last turn, which is to be learnt")
        return text, spans

    def _render(self, messages: Sequence[Message], generation: bool, *, spans: bool) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marks = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.source,
                return_assistant_tokens_mask=spans,
                add_generation_prompt=generation,
                **self.special,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise TemplateRefusedError(str(error)) from None
        return str(texts[0]), [(int(start), int(end)) for start, end in marks[0]] if spans else []

    def _marked_spans(self, messages: Sequence[Message], first: int) -> tuple[str, list[Span]]:
        text, spans = self._render(messages, False, spans=True)
        spans = [(start, end) for start, end in spans if end > start]
        if any(before[1] > after[0] for before, after in pairwise(spans)):
            raise TurnsNotFoundError("its {% generation %} marks overlap")
        if spans and spans[-1][1] > len(text):
            raise TurnsNotFoundError("its {% generation %} marks lie outside the text (inside a macro or a set block?)")
        if first:
            before = self.render(messages[:first], generation=False)
            if not text.startswith(before):
                raise TurnsNotFoundError("the prompt changes when the completion follows")
            spans = [span for span in spans if span[0] >= len(before)]
        return text, spans

    def _found_spans(self, messages: Sequence[Message], first: int) -> tuple[str, list[Span]]:
        text = self.render(messages, generation=False)
        spans: list[Span] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant" or turn < first:
                continue
            start, end = self._turn(text, messages, turn)
            if spans and start < spans[-1][1]:
                raise TurnsNotFoundError(f"turns overlap at message {turn}")
            spans.append((start, self._closed(text, start, end)))
        return text, spans

    def _turn(self, text: str, messages: Sequence[Message], turn: int) -> Span:
        """Where the turn begins and ends, with all that closes it."""
        around: tuple[str, str] | None = None
        opened = self.render(messages[:turn], generation=True) if turn else None
        if opened is not None and text.startswith(opened):
            start = len(opened)
        else:
            around = self._around(messages, turn)
            if not text.startswith(around[0]):
                raise TurnsNotFoundError(f"it changes earlier text when message {turn} is added")
            start = len(around[0])
        last = turn == len(messages) - 1
        closed = text if last else self.render(messages[: turn + 1], generation=False)
        if text.startswith(closed) and len(closed) >= start:
            return start, len(closed)
        after = (around or self._around(messages, turn))[1]
        close = self._around(messages[: turn + 1], turn)[1]
        if not text.endswith(after) or not after.startswith(close) or len(text) - len(after) < start:
            raise TurnsNotFoundError(f"where message {turn} ends depends on what follows it")
        return start, len(text) - len(after) + len(close)

    def _around(self, messages: Sequence[Message], turn: int) -> tuple[str, str]:
        """What stands before and after the content of a turn."""
        marked = [*messages[:turn], {**messages[turn], "content": _MARK}, *messages[turn + 1 :]]
        before, *after = self.render(marked, generation=False).split(_MARK)
        if len(after) != 1:
            raise TurnsNotFoundError(f"it shows the content of message {turn} {len(after)} times")
        return before, after[0]

    def _closed(self, text: str, start: int, end: int) -> int:
        """The end without white space that follows the closing special token: no rollout generates it."""
        bare = text[start:end].rstrip()
        return start + len(bare) if self.closing and bare.endswith(self.closing) else end
