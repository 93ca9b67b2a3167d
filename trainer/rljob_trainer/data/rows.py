"""Rows of JSONL and parquet files, and their columns by dotted path."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from rljob_trainer.config.errors import UserError

log = logging.getLogger(__name__)

Row = dict[str, Any]


def read_rows(path: Path, limit: int | None, field: str) -> list[Row]:
    """The file's rows in order, at most `limit`. `field` is the manifest's, for messages.

    Raises UserError for another kind of file, a damaged one (naming the line) or one without rows.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = _read_parquet(path, limit, field)
    elif suffix in (".jsonl", ".ndjson"):
        rows = list(_read_jsonl(path, limit, field))
    else:
        raise UserError(f"{field}: {path.name} is neither .jsonl nor .parquet")
    if not rows:
        raise UserError(f"{field}: {path} has no rows")
    return rows


def _read_jsonl(path: Path, limit: int | None, field: str) -> Iterator[Row]:
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if limit is not None and count >= limit:
                return
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UserError(f"{field}: {path}, line {number}: not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{field}: {path}, line {number}: a row must be an object, not {type(row).__name__}")
            count += 1
            yield row


def _read_parquet(path: Path, limit: int | None, field: str) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    rows: list[Row] = []
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                rows += batch.to_pylist()
                if limit is not None and len(rows) >= limit:
                    break
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{field}: {path} is not a readable parquet file: {str(error).splitlines()[0]}") from None
    return rows if limit is None else rows[:limit]


def column(row: Mapping[str, Any], key: str, number: int, field: str) -> Any:
    """The value at a dotted path, such as `reward_model.ground_truth`; a column of that very name comes first.

    Raises UserError naming the row (counted from 0) and the columns that are there.
    """
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            columns = ", ".join(sorted(map(str, row)))
            raise UserError(f"{field}: row {number} has no column {key!r}; its columns are: {columns}")
    return value


def report_skipped(skipped: int, kept: int, path: Path, limit: int, what: str, field: str) -> None:
    """Say how many rows were too long. Raises UserError when none is left."""
    if not kept:
        raise UserError(f"{field}: all {skipped} rows of {path} have more than {limit} {what}")
    if skipped:
        log.warning(
            "%s: %d of %d rows have more than %d %s and are left out", path, skipped, skipped + kept, limit, what
        )
