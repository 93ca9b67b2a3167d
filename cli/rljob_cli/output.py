"""What commands print: rich text for people, JSON or YAML for programs, from the same data."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Format(StrEnum):
    """Form of the output."""

    text = "text"
    json = "json"
    yaml = "yaml"


def console(*, stderr: bool = False) -> Console:
    """A console made when it is needed: standard output may have been redirected since the import."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def emit(data: Any, form: Format, text: Callable[[], None]) -> None:
    """Print `data` as JSON or YAML, or call `text`, which prints it for people."""
    if form is Format.json:
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    elif form is Format.yaml:
        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    else:
        text()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """A plain table; numbers on the right."""
    rows = [list(row) for row in rows]
    result = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        result.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*(escape(_shown(cell)) for cell in row))
    return result


def error(message: str, hint: str | None = None) -> None:
    """One message on standard error."""
    out = console(stderr=True)
    out.print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        out.print(f"[bold]hint:[/] {escape(hint)}")


def warning(message: str) -> None:
    """One warning on standard error."""
    console(stderr=True).print(f"[bold yellow]warning:[/] {escape(message)}")


def _shown(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
