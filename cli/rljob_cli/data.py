"""`rljob data`: the data sets of the recipes, from the Hub or from local files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rljob_api.errors import UserError

from rljob_cli.local import Output
from rljob_cli.output import Format, console, emit, table


@contextmanager
def _trainer_installed() -> Iterator[None]:
    """Says what to install where the trainer's packages are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"`rljob data` needs {error.name}", hint="pip install 'rljob[trainer]'") from None


def recipes(output: Output = Format.text) -> None:
    """List what can be prepared."""
    with _trainer_installed():
        from rljob_trainer.data.recipes import RECIPES

    data = [
        {
            "name": name,
            "about": recipe.about,
            "sources": [
                {"name": each.name, "repository": each.repo, "config": each.config, "splits": list(each.splits)}
                for each in recipe.sources
            ],
            "use": recipe.use,
        }
        for name, recipe in RECIPES.items()
    ]

    def text() -> None:
        rows = [(name, recipe.about, recipe.sources[0].repo) for name, recipe in RECIPES.items()]
        console().print(table(("recipe", "what it is", "from"), rows))

    emit({"recipes": data}, output, text)


def prepare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe; `rljob data list` has them.")],
    target: Annotated[Path, typer.Argument(metavar="FILE", help="What to write: a .jsonl or .parquet file.")],
    source: Annotated[
        Path | None,
        typer.Option("--source", help="Folder (or file) with the sources, instead of the Hub: nq/train.jsonl, …"),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="Subset on the Hub, such as all or extended of OpenR1-Math-220k.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first rows of each source only.")] = None,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Folder for downloads.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use what is in the cache alone.")] = False,
    output: Output = Format.text,
) -> None:
    """Write a recipe's data as a file that a manifest can name. A private source needs HF_TOKEN in the environment."""
    with _trainer_installed():
        from rljob_trainer.data.hub import HubAccess
        from rljob_trainer.data.recipes import prepare as make

    hub = HubAccess(cache_dir, offline)
    summary = make(recipe, target, source=source, revision=revision, config=config, limit=limit, hub=hub)

    def text() -> None:
        out = console()
        rows = [(each.name, each.split, each.read, each.written) for each in summary.sources]
        out.print(table(("source", "split", "rows read", "written"), rows))
        for each in summary.sources:
            for why, count in each.dropped.items():
                out.print(f"left out of {escape(each.name)}: {count:,} ({escape(why)})")
        out.print(f"\n{summary.rows:,} rows in {escape(summary.output)}; in a manifest: {escape(summary.use)}")

    emit(summary.to_json(), output, text)
