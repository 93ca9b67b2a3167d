"""Chats of several turns as token ids: what a chat template writes between two turns of the assistant.

The ids that the model drew stay as they were. What follows them is the template's own: the rest of what closes the
turn, the messages in between, and the next turn opened. So prompt and response are, token for token, the template's
rendering of the same messages wherever it renders what the assistant wrote as it was written. Where it does not (it
drops earlier `<think>` text, strips white space, writes calls in its own way), its rendering differs in the model's own
tokens, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rljob.types import Generation, Tokenizer
from rljob_api.errors import UserError

Message = Mapping[str, Any]
ANCHOR = "\ue0a3rljob-turn\ue0a4"
"""Stands for text before. It ends with a private-use character, which no tokenizer joins with what follows."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """What goes on a conversation after a turn of the assistant, up to where the next one begins."""

    token_ids: list[int]
    """Follow the turn's own ids; the next call of `Session.generate` takes them."""
    text: str
    """Follows the turn's own text. It shows the end of the turn also where the model has drawn that itself."""


class ChatTurns:
    """Goes on from one turn of the assistant to the next with the chat template of `tokenizer` (transformers).

    Raises UserError, at construction, when there is no template, or one that does not show what the assistant wrote.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("spec.rollout.generate: turns need a chat template", hint="spec.model.chatTemplate")
        self._closing = self._ids(self.text([], generation=False))
        """What closes a turn after which nothing comes."""
        special = special_ids(tokenizer)
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in self._closing if i in special))
        """Special tokens with which the template closes a turn: where a generation is to end (`stop_ids`)."""

    def follow(self, turn: Generation, messages: Sequence[Message]) -> Bridge:
        """What comes between `turn` and the assistant's next one: `messages`, such as results of tools or the words of
        a user. `turn` has come to an end by itself: one that its limit has cut off has no next one.

        Raises UserError when the template refuses the messages.
        """
        text = self.text(messages)
        ids = self._ids(text)
        had = self._had(turn, ids)
        shown = ids[: had if turn.end_id is None else max(had - 1, 0)]
        return Bridge(ids[had:], text.removeprefix(self._tokenizer.decode(shown, skip_special_tokens=False)))

    def text(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """What the template writes after the content of an assistant's turn: its end, `messages`, and the next turn
        opened if `generation`."""
        conversation = [{"role": "user", "content": "."}, {"role": "assistant", "content": ANCHOR}, *messages]
        try:
            whole = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=generation)
        except Exception as error:  # noqa: BLE001 - a template may raise whatever it likes
            raise UserError(f"spec.rollout.generate.type: the chat template refuses a conversation: {error}") from None
        _, found, after = str(whole).partition(ANCHOR)
        if not found:
            raise UserError("spec.rollout.generate.type: the chat template drops what the assistant wrote")
        return after

    def _ids(self, text: str) -> list[int]:
        ids = anchored_ids(self._tokenizer, text)
        return self._tokenizer.encode(text, add_special_tokens=False) if ids is None else ids

    def _had(self, turn: Generation, ids: Sequence[int]) -> int:
        """How many of `ids`, which begin with what closes a turn, the turn has at its end already."""
        closing = 0
        while closing < min(len(self._closing), len(ids)) and self._closing[closing] == ids[closing]:
            closing += 1
        last = turn.token_ids[-1] if turn.token_ids else None
        if last not in self.end_ids and (last is None or turn.end_id != last):
            return 0
        # Also where it left out what the template writes before the end, such as a line break.
        ends = [at + 1 for at in range(closing) if ids[at] == last]
        exact = [count for count in ends if list(turn.token_ids[-count:]) == list(ids[:count])]
        return max(exact, default=min(ends, default=0))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of all special tokens: those with a role of their own (`eos_token` …) and those merely marked as special."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(getattr(tokenizer, "all_special_ids", ())) | {i for i, token in added.items() if token.special}


def continuation_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` after other text: without the space that sentencepiece puts before any text it is given."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
    wanted = tokenizer.decode(anchor, skip_special_tokens=False) + text
    if not ids or tokenizer.decode([*anchor, *ids], skip_special_tokens=False) == wanted:
        return ids
    anchored = anchored_ids(tokenizer, text)
    if anchored is None or tokenizer.decode([*anchor, *anchored], skip_special_tokens=False) != wanted:
        return ids
    return anchored


def anchored_ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """The ids of `text` where it follows `ANCHOR`; None when the tokenizer joins the two."""
    anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
    whole = tokenizer.encode(ANCHOR + text, add_special_tokens=False)
    return whole[len(anchor) :] if whole[: len(anchor)] == anchor else None
