"""Making a recipe's file: read its sources, convert row by row, write whole or not at all, say what was left out."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rljob_api.errors import UserError
from rljob_api.v1alpha1.hub_path import PREFIX

from rljob_trainer.atomic_files import replaced_file
from rljob_trainer.data.hub import HubAccess, fetch
from rljob_trainer.data.recipes.catalog import RECIPES, Dropped, Recipe, Source, WrongSchemaError
from rljob_trainer.data.rows import Row, read_blocks

_SUFFIXES = (".jsonl", ".parquet", ".ndjson")
_GROUP_ROWS = 4096


@dataclass
class SourceSummary:
    """What became of one source."""

    name: str
    split: str
    files: list[str]
    read: int = 0
    written: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Why rows were left out, and how many."""


@dataclass
class Summary:
    """What was made."""

    recipe: str
    output: str
    rows: int
    sources: list[SourceSummary]
    use: str
    """The fields of a manifest that read the file."""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def prepare(
    name: str,
    output: str | Path,
    *,
    source: str | Path | None = None,
    revision: str | None = None,
    config: str | None = None,
    limit: int | None = None,
    hub: HubAccess | None = None,
) -> Summary:
    """Write the recipe's data to `output` (`.jsonl` or `.parquet`), in the order of its sources, never shuffled.

    `source`: a folder with files of the sources' schema instead of the Hub: `<source>/<split>.jsonl`,
    `<source>-<split>.parquet`, `<source>.jsonl` and the like; or one file, for a recipe with one source. `limit`: rows
    per source. Raises UserError for an unknown recipe, a missing source or a row of another schema; nothing is
    written then.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    target = Path(output)
    if target.suffix.lower() not in (".jsonl", ".parquet"):
        raise UserError(f"output: {target.name} must end in .jsonl or .parquet")
    recipe = RECIPES[name]
    found = [_locate(each, recipe, source, revision, config, hub) for each in recipe.sources]
    summaries = [
        SourceSummary(each.name, split, [file.name for file in files])
        for each, (split, files) in zip(recipe.sources, found, strict=True)
    ]
    target.parent.mkdir(parents=True, exist_ok=True)

    def rows() -> Iterator[Row]:
        for each, (split, files), summary in zip(recipe.sources, found, summaries, strict=True):
            yield from _converted(recipe, each, split, files, limit, summary)

    written = _write(target, rows())
    return Summary(name, str(target), written, summaries, recipe.use)


def prepare_data(directory: str | Path, *, files: Mapping[str, str], **options: Any) -> None:
    """For `spec.data.prepare.function`: `rljob_trainer.data.recipes:prepare_data`. `files` says which recipe goes into
    which file (in the job's directory); `source`, `revision`, `config` and `limit` are as `prepare` has them."""
    if not files:
        raise UserError("spec.data.prepare.args.files: names no file; write it as {data/train.jsonl: dapo-math-17k}")
    if options.get("source") is not None:
        options["source"] = Path(directory, options["source"])
    for output, recipe in files.items():
        prepare(recipe, Path(directory, output), **options)


def _converted(
    recipe: Recipe, source: Source, split: str, files: list[Path], limit: int | None, summary: SourceSummary
) -> Iterator[Row]:
    dropped: Counter[str] = Counter()
    where = f"source {source.name!r}"
    for block in read_blocks(files, limit, where):
        for at, row in enumerate(block.rows(where)):
            number = block.first + at
            summary.read += 1
            try:
                made = recipe.convert(row, source, split, number)
            except Dropped as reason:
                dropped[str(reason)] += 1
                continue
            except WrongSchemaError as error:
                raise UserError(
                    f"{where}: {block.path}, row {number} is of another schema: {error}; "
                    f"its columns are: {', '.join(sorted(map(str, row)))}"
                ) from None
            summary.written += 1
            yield made
    summary.dropped = dict(dropped)
    if not summary.written:
        raise UserError(f"{where}: {files[0]}: none of its {summary.read} rows can be used: {dict(dropped) or 'empty'}")


def _locate(
    source: Source, recipe: Recipe, local: str | Path | None, revision: str | None, config: str | None,
    hub: HubAccess | None,
) -> tuple[str, list[Path]]:  # fmt: skip
    """The split that is there and its files."""
    if local is not None:
        return _locate_local(source, recipe, Path(local))
    subset = config if config is not None and len(recipe.sources) == 1 else source.config
    base = f"{PREFIX}{source.repo}{f':{subset}' if subset else ''}{f'@{revision}' if revision else ''}"
    problem: UserError | None = None
    for split in source.splits:
        try:
            return split, fetch(f"{base}/{split}", split, f"source {source.name!r}", hub)
        except UserError as error:
            if "file for split" not in error.message:
                raise
            problem = problem or error
    raise problem or UserError(f"source {source.name!r}: no split")


def _locate_local(source: Source, recipe: Recipe, local: Path) -> tuple[str, list[Path]]:
    if local.is_file():
        if len(recipe.sources) > 1:
            names = ", ".join(each.name for each in recipe.sources)
            raise UserError(f"source: {local} is one file, but the recipe reads {names}; give the folder with all")
        return source.splits[0], [local]
    if not local.is_dir():
        raise UserError(f"source: {local} does not exist")
    stems = [(split, f"{source.name}{between}{split}") for split in source.splits for between in ("/", "-", "_")]
    for split, stem in [*stems, (source.splits[0], source.name)]:
        for suffix in _SUFFIXES:
            if (file := local / f"{stem}{suffix}").is_file():
                return split, [file]
    shards = [
        (split, sorted((local / folder).glob(f"{split}-*.parquet")))
        for split in source.splits for folder in (source.name, f"{source.name}/data", "data", ".")
    ]  # fmt: skip
    for split, files in shards:
        if files and (len(recipe.sources) == 1 or source.name in files[0].parts):
            return split, files
    looked = f"{source.name}/{source.splits[0]}.jsonl, {source.name}-{source.splits[0]}.parquet, {source.name}.jsonl"
    raise UserError(f"source {source.name!r} is not in {local}", hint=f"expected there: {looked} or the like")


def _write(target: Path, rows: Iterator[Row]) -> int:
    """Returns the rows written."""
    with replaced_file(target) as temporary:
        return (_write_parquet if target.suffix.lower() == ".parquet" else _write_jsonl)(temporary, rows)


def _write_jsonl(path: Path, rows: Iterator[Row]) -> int:
    count = 0
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(row) + b"\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterator[Row]) -> int:
    import pyarrow
    from pyarrow import parquet

    count = 0
    writer = None
    try:
        while group := [row for _, row in zip(range(_GROUP_ROWS), rows, strict=False)]:
            table = pyarrow.Table.from_pylist(group, schema=None if writer is None else writer.schema)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += len(group)
    finally:
        if writer is not None:
            writer.close()
    return count
