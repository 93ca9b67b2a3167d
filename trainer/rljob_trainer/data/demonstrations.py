"""Rows of the formats of `spec.sft.dataset` as segments: text, and whether it is trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

from rljob_api.errors import UserError

from rljob_trainer.data.chat import ChatTemplate, Message, TemplateRefusedError, TurnsNotFoundError
from rljob_trainer.data.encode import Segment
from rljob_trainer.data.rows import Row, column, is_messages, kind_of, text_messages

WHERE = "spec.sft.dataset"
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
COLUMNS = {
    "segments": ("segments",),
    "messages": ("messages",),
    "conversations": ("system", "conversations"),
    "prompt_completion": ("prompt", "completion"),
}
"""The columns that a format reads."""


def segments_of(row: Row, number: int, form: str, template: ChatTemplate | None, end: str) -> list[Segment]:
    """The segments of a row. `number` is its place in the file, for messages; `end` closes a plain completion.

    Raises UserError for a row of another form, and where the chat template does not show exactly what the assistant
    wrote.
    """
    if form == "segments":
        return _given(row, number)
    if form == "messages":
        messages, first = column(row, "messages", number, WHERE), 0
    elif form == "conversations":
        messages, first = from_conversations(row, number), 0
    else:
        prompt, completion = (column(row, key, number, WHERE) for key in ("prompt", "completion"))
        if isinstance(prompt, str) and isinstance(completion, str):
            return [(prompt, False), (completion + end, True)]
        if not is_messages(prompt) or not is_messages(completion):
            raise UserError(f"{WHERE}: row {number}: `prompt` and `completion` must both be text or lists of messages")
        messages, first = [*prompt, *completion], len(prompt)
    if not is_messages(messages):
        raise UserError(f"{WHERE}: row {number}: the messages must be a list of {{role, content}}")
    return chat_segments(text_messages(messages, number, WHERE), number, template, first)


def chat_segments(
    messages: Sequence[Message], number: int, template: ChatTemplate | None, first: int = 0
) -> list[Segment]:
    """Messages through the chat template, cut where the assistant's text begins and ends (from message `first` on).

    What follows the assistant's last turn is left out: nothing is learnt from it.
    """
    if template is None:
        raise UserError(
            f"{WHERE}: the tokenizer has no chat template",
            hint="give spec.model.chatTemplate, or rows with prompt and completion as plain text",
        )
    try:
        text, spans = template.assistant_spans(messages, first)
    except TemplateRefusedError as error:
        raise UserError(f"{WHERE}: row {number}: the chat template refuses the messages: {error}") from None
    except TurnsNotFoundError as error:
        raise UserError(
            f"{WHERE}: row {number}: the chat template does not show exactly what the assistant wrote: {error}",
            hint="mark it in spec.model.chatTemplate with {% generation %} … {% endgeneration %}, or give a template "
            "that writes each message once and leaves it so",
        ) from None
    segments: list[Segment] = []
    done = 0
    for start, end in spans:
        segments += [(text[done:start], False), (text[start:end], True)]
        done = end
    return [segment for segment in segments if segment[0]]


def from_conversations(row: Mapping[str, Any], number: int, where: str = WHERE) -> list[dict[str, str]]:
    """{from, value} turns and an optional `system` column, as Bespoke-Stratos has them."""
    messages = [{"role": "system", "content": str(row["system"])}] if row.get("system") else []
    turns = column(row, "conversations", number, where)
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: row {number}: `conversations` is {kind_of(turns)}, not a list of {{from, value}}")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("from") not in ROLES or not isinstance(turn.get("value"), str):
            raise UserError(
                f"{where}: row {number}: `conversations` must be a list of {{from, value}} with `from` one of "
                f"{', '.join(ROLES)}"
            )
        messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
    return messages


def _given(row: Row, number: int) -> list[Segment]:
    segments = column(row, "segments", number, WHERE)
    try:
        pairs = [(segment["text"], segment["train"]) for segment in segments]
    except (KeyError, TypeError):
        pairs = []
    if not pairs or not all(isinstance(text, str) and isinstance(train, bool) for text, train in pairs):
        raise UserError(f"{WHERE}: row {number}: `segments` must be a list of {{text, train: true or false}}")
    return pairs
