"""Rows of samples for distillation, in files that the SFT reader takes."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from rljob.types import Sample
from rljob_api.v1alpha1.output import OutputSpec

from rljob_trainer.atomic_files import replaced_file
from rljob_trainer.metrics.jsonl import plain


def wanted(sample: Sample, output: OutputSpec) -> bool:
    """Whether the sample is written."""
    if sample.status != "completed" and (output.completed_only or sample.status != "truncated"):
        return False
    return output.min_reward is None or (sample.reward is not None and sample.reward >= output.min_reward)


def sample_row(sample: Sample, segments: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """One row. `prompt` and `completion` are text as the model saw it, for `prompt_completion`; `segments` has the
    observations of tools marked as not trained on, and the end-of-sequence token where the model wrote it.

    `segments`: the response, cut where the loss mask changes, as (text, trained).
    """
    turns = [(sample.prompt, False), *segments]
    row = {
        "prompt": sample.prompt,
        "completion": sample.response,
        "segments": [{"text": text, "train": train} for text, train in turns],
        "label": sample.label,
        "source": sample.source,
        "row": sample.row,
        "index": sample.index,
        "reward": sample.reward,
        "reward_parts": sample.reward_parts,
        "status": sample.status,
        "policy_version": max(sample.policy_versions, default=-1),
    }
    return {key: plain(value) for key, value in row.items()}


def assemble(parts: Iterable[Path], folder: Path, name: str, form: Literal["jsonl", "parquet"]) -> Path:
    """Put the rows of `parts` (JSONL) into one file, which appears whole or not at all. Returns its path."""
    path = folder / f"{name}.{form}"
    with replaced_file(path) as temporary:
        if form == "jsonl":
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part.read_bytes())
        else:
            _write_parquet(parts, temporary)
    return path


def _write_parquet(parts: Iterable[Path], path: Path) -> None:
    """A row group per part. Labels other than text, and the parts of the reward, are JSON: a column has one type."""
    import pyarrow as pa
    from pyarrow import parquet

    segment = pa.struct([("text", pa.string()), ("train", pa.bool_())])
    schema = pa.schema(
        [
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("segments", pa.list_(segment)),
            ("label", pa.string()),
            ("source", pa.string()),
            ("row", pa.int64()),
            ("index", pa.int64()),
            ("reward", pa.float64()),
            ("reward_parts", pa.string()),
            ("status", pa.string()),
            ("policy_version", pa.int64()),
        ]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            rows = [orjson.loads(line) for line in part.read_bytes().splitlines()]
            for row in rows:
                row["label"] = row["label"] if isinstance(row["label"], str) else json.dumps(row["label"])
                row["reward_parts"] = json.dumps(row["reward_parts"])
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
