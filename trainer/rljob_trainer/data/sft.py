"""Demonstrations for supervised fine-tuning: token ids, and a mask of those that the loss is taken on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import batched
from pathlib import Path
from typing import Any

from rljob_trainer.config.data import SftDataset
from rljob_trainer.config.errors import UserError
from rljob_trainer.data.paths import existing_file
from rljob_trainer.data.prompts import epoch_order, is_messages, render_chat
from rljob_trainer.data.rows import Row, column, read_rows, report_skipped

log = logging.getLogger(__name__)

_WHERE = "spec.sft.dataset"
_ROWS_AT_ONCE = 4096
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Segment = tuple[str, bool]
"""Text, and whether it is trained on."""


@dataclass(frozen=True, slots=True)
class SftRow:
    """A demonstration. `input_ids` and `loss_mask` (1: trained on) have one length."""

    input_ids: list[int]
    loss_mask: list[int]


class SftSource:
    """Demonstrations in batches by step: any process can ask for any step's batch, so there is no cursor to keep."""

    def __init__(
        self,
        dataset: SftDataset,
        tokenizer: Any,
        job_dir: str | Path,
        *,
        batch_size: int,
        seed: int,
        max_length: int,
    ) -> None:
        """`tokenizer` is a transformers tokenizer; rows of more than `max_length` tokens are left out and counted."""
        path = existing_file(dataset.path, job_dir, f"{_WHERE}.path")
        rows = read_rows(path, dataset.limit, f"{_WHERE}.path")
        self.rows: list[SftRow] = []
        untrained = 0
        for chunk in batched(enumerate(rows), _ROWS_AT_ONCE):
            segments = [_segments(dataset, row, number, tokenizer) for number, row in chunk]
            for row in _tokenize(segments, tokenizer):
                if not any(row.loss_mask):
                    untrained += 1
                elif len(row.input_ids) <= max_length:
                    self.rows.append(row)
        if untrained:
            log.warning("%s: %d of %d rows have no token to train on and are left out", path, untrained, len(rows))
        if untrained == len(rows):
            raise UserError(f"{_WHERE}: no row of {path} has a token to train on (an assistant's turn)")
        self.skipped = len(rows) - len(self.rows) - untrained
        field = "spec.sft.maxSequenceLength"
        report_skipped(self.skipped, len(self.rows), path, max_length, "tokens", field)
        self._batch_size = batch_size
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __len__(self) -> int:
        """Rows of one epoch."""
        return len(self.rows)

    def batch(self, step: int) -> list[SftRow]:
        """The rows of step `step` (from 0): epochs, each in an order of its own, follow one another without a gap."""
        rows = []
        for position in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, place = divmod(position, len(self.rows))
            rows.append(self.rows[self._order(epoch)[place]])
        return rows

    def _epoch_order(self, epoch: int) -> list[int]:
        return epoch_order(len(self.rows), self._seed, "sft", epoch)


def _segments(dataset: SftDataset, row: Row, number: int, tokenizer: Any) -> list[Segment]:
    if dataset.format == "segments":
        return _given_segments(row, number)
    if dataset.format == "messages":
        messages = column(row, "messages", number, _WHERE)
    elif dataset.format == "conversations":
        messages = _from_conversations(row, number)
    else:
        prompt = column(row, "prompt", number, _WHERE)
        completion = column(row, "completion", number, _WHERE)
        if isinstance(prompt, str) and isinstance(completion, str):
            return [(prompt, False), (completion + (tokenizer.eos_token or ""), True)]
        if not is_messages(prompt) or not is_messages(completion):
            raise UserError(f"{_WHERE}: row {number}: `prompt` and `completion` must both be text or lists of messages")
        return chat_segments([*prompt, *completion], tokenizer, number, trained_from=len(prompt))
    if not is_messages(messages):
        raise UserError(f"{_WHERE}: row {number}: the messages must be a list of {{role, content}}")
    return chat_segments(messages, tokenizer, number)


def _given_segments(row: Row, number: int) -> list[Segment]:
    segments = column(row, "segments", number, _WHERE)
    try:
        pairs = [(segment["text"], segment["train"]) for segment in segments]
    except (KeyError, TypeError):
        pairs = []
    if not pairs or not all(isinstance(text, str) and isinstance(train, bool) for text, train in pairs):
        raise UserError(f"{_WHERE}: row {number}: `segments` must be a list of {{text, train: true or false}}")
    return pairs


def _from_conversations(row: Row, number: int) -> list[dict[str, str]]:
    """{from, value} turns and an optional `system` column, as Bespoke-Stratos has them."""
    messages = [{"role": "system", "content": str(row["system"])}] if row.get("system") else []
    for turn in column(row, "conversations", number, _WHERE):
        if not isinstance(turn, dict) or turn.get("from") not in _ROLES or not isinstance(turn.get("value"), str):
            raise UserError(
                f"{_WHERE}: row {number}: `conversations` must be a list of {{from, value}} with `from` one of "
                f"{', '.join(_ROLES)}"
            )
        messages.append({"role": _ROLES[turn["from"]], "content": turn["value"]})
    return messages


def chat_segments(
    messages: Sequence[dict[str, Any]], tokenizer: Any, number: int, *, trained_from: int = 0
) -> list[Segment]:
    """Messages through the chat template, cut so that assistants' turns (from `trained_from` on) are trained on.

    An assistant's turn is what the template adds to the text that a rollout would start from, so training and
    generation see the same tokens. Raises UserError when the template rewrites earlier turns: the cut would be wrong.
    """
    segments: list[Segment] = []
    done = ""
    for position, message in enumerate(messages):
        if message["role"] != "assistant" or position < trained_from:
            continue
        before = render_chat(tokenizer, messages[:position], generation=True, where=_WHERE)
        after = render_chat(tokenizer, messages[: position + 1], generation=False, where=_WHERE)
        if not before.startswith(done) or not after.startswith(before):
            raise UserError(
                f"{_WHERE}: row {number}: the chat template changes earlier text when turn {position} is added "
                "(some drop <think> text), so its tokens cannot be told apart",
                hint="give a template in spec.model.chatTemplate that only appends",
            )
        segments += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return segments


def _tokenize(rows: Sequence[Sequence[Segment]], tokenizer: Any) -> list[SftRow]:
    """Segments are tokenised one by one: no token spans what is trained on and what is not."""
    texts = list(dict.fromkeys(text for segments in rows for text, _ in segments))
    ids: dict[str, list[int]] = {}
    if texts:
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)[
            "input_ids"
        ]
        ids = dict(zip(texts, encoded, strict=True))
    tokenized = []
    for segments in rows:
        row = SftRow([], [])
        for text, train in segments:
            row.input_ids.extend(ids[text])
            row.loss_mask.extend([int(train)] * len(ids[text]))
        tokenized.append(row)
    return tokenized
