"""Files of data sets, their rows (JSONL and parquet), and columns of rows by dotted path."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
from rljob_api.errors import UserError
from rljob_api.v1alpha1.hub_path import PREFIX

from rljob_trainer.data.hub import HubAccess, fetch
from rljob_trainer.job_paths import existing_file

log = logging.getLogger(__name__)

Row = dict[str, Any]
_BLOCK_BYTES = 4 << 20
_BATCH_ROWS = 512
_LONG_INTEGER = re.compile(rb"\d{19}")


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file, not parsed yet: it travels cheaply to another process."""

    path: Path
    first: int
    """Number of the first row over all files, from 0."""
    count: int
    """Rows in it."""
    size: int
    """Bytes in memory."""
    lines: tuple[tuple[int, bytes], ...] | None
    """JSONL: line numbers, from 1, and lines."""
    batch: Any = None
    """Parquet: a pyarrow RecordBatch."""

    def rows(self, field: str) -> list[Row]:
        """The rows. Raises UserError, naming the line, for one that is no JSON object."""
        if self.lines is None:
            return list(self.batch.to_pylist())
        return [_parsed(line, number, self.path, field) for number, line in self.lines]


def read_blocks(
    paths: Sequence[Path], limit: int | None, field: str, columns: Sequence[str] | None = None
) -> Iterator[Block]:
    """The rows of the files in order, at most `limit`, in blocks of some megabytes. Of parquet files only `columns`
    are read, where given and there. Raises UserError for another kind of file and a damaged one."""
    first = 0
    for path in paths:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            blocks = _parquet_blocks(path, field, columns)
        elif suffix in (".jsonl", ".ndjson"):
            blocks = _jsonl_blocks(path)
        else:
            raise UserError(f"{field}: {path.name} is neither .jsonl nor .parquet")
        for block in blocks:
            left = block.count if limit is None else min(block.count, limit - first)
            if left == 0:
                return
            lines = None if block.lines is None else block.lines[:left]
            batch = None if block.batch is None else block.batch.slice(0, left)
            yield replace(block, first=first, count=left, lines=lines, batch=batch)
            first += left


def data_files(path: str, split: str, job_dir: str | Path, field: str, hub: HubAccess | None = None) -> list[Path]:
    """The files of a data set: the file that `path` names, or those of a split on the Hub (`hf://…`).

    Raises UserError, saying where it looked, when there is none.
    """
    if path.startswith(PREFIX):
        return fetch(path, split, field, hub)
    return [existing_file(path, job_dir, field)]


def read_rows(paths: Path | Sequence[Path], limit: int | None, field: str) -> list[Row]:
    """The files' rows in order, at most `limit`. `field` is the manifest's, for messages.

    Raises UserError for another kind of file, a damaged one (naming the line) or when there are no rows.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    rows = [row for block in read_blocks(paths, limit, field) for row in block.rows(field)]
    if not rows:
        raise UserError(f"{field}: {paths[0]} has no rows")
    return rows


def _jsonl_blocks(path: Path) -> Iterator[Block]:
    lines: list[tuple[int, bytes]] = []
    size = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            lines.append((number, line))
            size += len(line)
            if size >= _BLOCK_BYTES:
                yield Block(path, 0, len(lines), size, tuple(lines))
                lines, size = [], 0
    if lines:
        yield Block(path, 0, len(lines), size, tuple(lines))


def _parquet_blocks(path: Path, field: str, columns: Sequence[str] | None) -> Iterator[Block]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            there = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=there or None):
                yield Block(path, 0, batch.num_rows, batch.nbytes, None, batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{field}: {path} is not a readable parquet file: {str(error).splitlines()[0]}") from None


def _parsed(line: bytes, number: int, path: Path, field: str) -> Row:
    try:
        # orjson reads integers beyond 64 bits as floats, silently: then the slower parser, which keeps the digits.
        row = json.loads(line, parse_constant=_no_number) if _LONG_INTEGER.search(line) else orjson.loads(line)
    except ValueError as error:
        raise UserError(f"{field}: {path}, line {number}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f"{field}: {path}, line {number}: a row must be an object, not {type(row).__name__}")
    return row


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def as_json(value: Any, number: int, field: str) -> Any:
    """A value of a parquet file as JSON has it: dates and times as ISO 8601, decimals as text with all their digits.

    Raises UserError, naming the row, for what has no such form (bytes).
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [as_json(item, number, field) for item in value]
    if isinstance(value, Mapping):
        return {str(key): as_json(item, number, field) for key, item in value.items()}
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    raise UserError(f"{field}: row {number}: a value of type {type(value).__name__} has no form in JSON; make it text")


def column(row: Mapping[str, Any], key: str, number: int, field: str) -> Any:
    """The value at a dotted path, such as `reward_model.ground_truth`; a column of that very name comes first.

    Raises UserError naming the row (counted from 0) and the columns that are there.
    """
    if key in row:
        return as_json(row[key], number, field)
    value: Any = row
    for part in key.split("."):
        if isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            columns = ", ".join(sorted(map(str, row)))
            raise UserError(f"{field}: row {number} has no column {key!r}; its columns are: {columns}")
    return as_json(value, number, field)


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", dict: "an object"}


def kind_of(value: Any) -> str:
    """The JSON type of a value of a data file, for messages."""
    if value is None:
        return "null"
    if isinstance(value, list):
        wrong = next((place for place, item in enumerate(value) if not _is_message(item)), None)
        return "an empty list" if not value else "a list" if wrong is None else f"a list whose entry {wrong} is none"
    return _KINDS.get(type(value), type(value).__name__)


def is_messages(value: Any) -> bool:
    """Whether `value` is a non-empty list of {role, content}."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str) and "content" in item


def text_messages(messages: Sequence[Mapping[str, Any]], number: int, field: str) -> list[dict[str, Any]]:
    """Messages whose content is text: lists of text parts (`[{type: text, text: …}]`) are joined.

    Content may be null where an assistant's message has `tool_calls`. Raises UserError, naming row and message, for
    any other content, such as an image.
    """
    return [{**message, "content": _text(message, number, place, field)} for place, message in enumerate(messages)]


def _text(message: Mapping[str, Any], number: int, place: int, field: str) -> str | None:
    content, at = message["content"], f"{field}: row {number}, message {place}"
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return content
    if not isinstance(content, list):
        raise UserError(f"{at}: `content` is {kind_of(content)}, not text")
    for part in content:
        if not isinstance(part, Mapping):
            raise UserError(f"{at}: `content` has {kind_of(part)} among its parts; a part is {{type: text, text: …}}")
        if part.get("type") != "text":
            raise UserError(f"{at}: `content` has a part of type {part.get('type')!r}; this version reads text alone")
        if not isinstance(part.get("text"), str):
            raise UserError(f"{at}: `content` has a part whose `text` is {kind_of(part.get('text'))}, not text")
    return "".join(part["text"] for part in content)


def report_skipped(skipped: int, kept: int, path: Path, limit: int, what: str, field: str) -> None:
    """Say how many rows were too long. Raises UserError when none is left."""
    if not kept:
        raise UserError(f"{field}: all {skipped} rows of {path} have more than {limit} {what}")
    if skipped:
        log.warning(
            "%s: %d of %d rows have more than %d %s and are left out", path, skipped, skipped + kept, limit, what
        )
