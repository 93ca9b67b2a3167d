"""Append-only JSONL files, and the history of a job over all its incarnations."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]
METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"


def plain(value: Any) -> Any:
    """`value` as strict JSON has it: NaN and infinities become null, what JSON does not know becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int) else str(value)


class JsonlWriter:
    """Appends one line per record and flushes it, so that a killed process loses the line being written at most."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append `record`."""
        self._file.write(json.dumps(plain(record), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_jsonl(path: Path) -> Iterator[Record]:
    """Records of `path`. A torn last line (the writer was killed) is left out; a broken line elsewhere raises."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}: {error}") from error


def read_history(job_dir: Path, file: str = METRICS_FILE) -> list[Record]:
    """Records of every incarnation of the job, in the order of their steps.

    A step that was trained twice (the first time was lost with its incarnation) appears once, as trained last.
    """
    merged: dict[tuple[Any, ...], Record] = {}
    for folder in sorted((job_dir / "attempts").glob("*")):
        for record in read_jsonl(folder / file):
            key = (record.get("kind"), record.get("step"), record.get("name"), record.get("group"), record.get("index"))
            merged.pop(key, None)
            merged[key] = record
    return sorted(merged.values(), key=lambda record: record.get("step") or 0)
