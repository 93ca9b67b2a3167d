"""Prompts for rollouts and evaluation, and an endless stream of them whose position can be kept."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import PromptDataset, TrainDataset

from rljob_trainer.data.chat import Message
from rljob_trainer.data.hub import HubAccess
from rljob_trainer.data.rows import (
    Row,
    column,
    data_files,
    is_messages,
    kind_of,
    read_rows,
    report_skipped,
    text_messages,
)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt as tokens, and what it is scored against."""

    prompt: str
    prompt_ids: list[int]
    label: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    """Where the row comes from, for scores by source."""
    row: int = 0
    """Number of the row in its file."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The rows of a data set that fit, in the file's order."""

    rows: list[PromptRow]
    skipped: int
    """Rows left out because their prompt is longer than `maxPromptLength`."""


def load_prompts(
    dataset: PromptDataset, tokenizer: Any, job_dir: str | Path, where: str, hub: HubAccess | None = None
) -> Prompts:
    """Read and tokenise a data set. `where` is its place in the manifest, for messages.

    `tokenizer` is a transformers tokenizer. Raises UserError for a missing file or column, a malformed row, or when
    no prompt is short enough.
    """
    paths = data_files(dataset.path, dataset.split, job_dir, f"{where}.path", hub)
    rows = read_rows(paths, dataset.limit, f"{where}.path")
    texts = [_render(dataset, row, number, tokenizer, where) for number, row in enumerate(rows)]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = []
    for number, (row, text, ids) in enumerate(zip(rows, texts, encoded, strict=True)):
        if not ids:
            raise UserError(f"{where}.inputKey: row {number} has an empty prompt")
        if len(ids) <= dataset.max_prompt_length:
            label = column(row, dataset.label_key, number, f"{where}.labelKey")
            source = column(row, dataset.source_key, number, f"{where}.sourceKey") if dataset.source_key else None
            origin = "" if source is None else str(source)
            kept.append(PromptRow(text, list(ids), label, _metadata(dataset, row, number, where), origin, number))
    skipped = len(rows) - len(kept)
    report_skipped(skipped, len(kept), paths[0], dataset.max_prompt_length, "prompt tokens", f"{where}.maxPromptLength")
    return Prompts(kept, skipped)


def load_eval(
    dataset: PromptDataset,
    tokenizer: Any,
    job_dir: str | Path,
    where: str = "spec.evaluation",
    hub: HubAccess | None = None,
) -> Prompts:
    """An evaluation set, in the file's order."""
    return load_prompts(dataset, tokenizer, job_dir, where, hub)


def _metadata(dataset: PromptDataset, row: Row, number: int, where: str) -> Mapping[str, Any]:
    if dataset.metadata_key is None:
        return {}
    value = column(row, dataset.metadata_key, number, f"{where}.metadataKey")
    return value if isinstance(value, dict) else {dataset.metadata_key: value}


def _render(dataset: PromptDataset, row: Row, number: int, tokenizer: Any, where: str) -> str:
    """The prompt's text: as it stands, or through the chat template with the turn of the assistant opened."""
    value = column(row, dataset.input_key, number, f"{where}.inputKey")
    if not dataset.apply_chat_template:
        if not isinstance(value, str):
            raise UserError(
                f"{where}.inputKey: row {number}: {dataset.input_key!r} is {kind_of(value)}, not text",
                hint="a list of chat messages needs applyChatTemplate: true" if isinstance(value, list) else None,
            )
        return f"{dataset.system_prompt}{value}" if dataset.system_prompt else value
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not is_messages(messages):
        raise UserError(
            f"{where}.inputKey: row {number}: {dataset.input_key!r} must be text or a list of "
            f"{{role, content}} messages, and is {kind_of(value)}"
        )
    messages = text_messages(messages, number, f"{where}.inputKey")
    if dataset.system_prompt:
        if messages[0]["role"] == "system":
            messages = messages[1:]
        messages = [{"role": "system", "content": dataset.system_prompt}, *messages]
    return _render_chat(tokenizer, messages, number, where)


def _render_chat(tokenizer: Any, messages: Sequence[Message], number: int, where: str) -> str:
    """Messages as text, with the turn of the assistant opened. `tokenizer` may add to the template, such as tools."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{where}: the tokenizer has no chat template",
            hint="give spec.model.chatTemplate, or set applyChatTemplate: false to use the text as it stands",
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise UserError(f"{where}: row {number}: the chat template refuses the messages: {error}") from None


class PromptSource:
    """An endless, repeatable stream of training prompts; every row comes once per epoch.

    The order of an epoch depends on the seed and the epoch's number alone, so that `restore(state())` in another
    process goes on with exactly the row that would have come next.
    """

    def __init__(
        self, dataset: TrainDataset, tokenizer: Any, job_dir: str | Path, seed: int, hub: HubAccess | None = None
    ) -> None:
        prompts = load_prompts(dataset, tokenizer, job_dir, "spec.data.train", hub)
        self.rows, self.skipped = prompts.rows, prompts.skipped
        self._shuffle = dataset.shuffle
        self._seed = seed
        self._digest = _digest(self.rows)
        self._epoch = 0
        self._position = 0
        self._order = self._order_of(self._epoch)

    def __len__(self) -> int:
        """Rows of one epoch."""
        return len(self.rows)

    @property
    def epoch(self) -> int:
        """Epochs begun before the next row."""
        return self._epoch

    def next(self, count: int) -> list[PromptRow]:
        """The next `count` rows; goes on into the next epoch where one ends."""
        taken: list[PromptRow] = []
        while len(taken) < count:
            if self._position == len(self.rows):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
            taken.append(self.rows[self._order[self._position]])
            self._position += 1
        return taken

    @property
    def drawn(self) -> int:
        """Prompts drawn since the beginning of the stream."""
        return self._epoch * len(self.rows) + self._position

    def at(self, number: int) -> PromptRow:
        """The prompt that is drawn as this number, counted from 0 over the whole stream, which stays where it is."""
        epoch, position = divmod(number, len(self.rows))
        return self.rows[self._order_of(epoch)[position]]

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON."""
        return {"epoch": self._epoch, "position": self._position, "rows": len(self.rows), "digest": self._digest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; an empty state is the beginning.

        Raises UserError when the data is not the same: its rows would come twice, or never.
        """
        if not state:
            state = {"epoch": 0, "position": 0, "rows": len(self.rows), "digest": self._digest}
        if state["rows"] != len(self.rows) or state["digest"] != self._digest:
            raise UserError(
                f"spec.data.train: the commit was made with other prompts ({state['rows']} rows, digest "
                f"{state['digest']}; now {len(self.rows)} rows, {self._digest})",
                hint="give the same data and tokenizer, or start anew with checkpoint.overwrite: Replace",
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> Sequence[int]:
        rows = len(self.rows)
        return epoch_order(rows, self._seed, "prompts", epoch) if self._shuffle else range(rows)


def epoch_order(count: int, seed: int, stream: str, epoch: int) -> list[int]:
    """A permutation of `range(count)`; the same for the same arguments on every machine."""
    order = list(range(count))
    Random(f"{seed}/{stream}/{epoch}").shuffle(order)
    return order


def _digest(rows: Sequence[PromptRow]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(f"{row.row}:{row.prompt_ids}:{row.label!r}\n".encode())
    return digest.hexdigest()
