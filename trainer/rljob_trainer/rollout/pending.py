"""Groups that wait for the next rollout, as a commit holds them. The prompt itself is in the data, by its row."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rljob.types import Generation, Sample, TurnRecord
from rljob_api.manifest.errors import UserError

from rljob_trainer.data.prompts import PromptRow
from rljob_trainer.rollout.dynamic_sampling import Group

_FROM_DATA = ("prompt", "prompt_ids", "label", "metadata", "source")


def groups_to_json(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For `LoopState.pending`."""
    return [{"samples": [_to_json(sample) for sample in group.samples]} for group in groups]


def groups_from_json(pending: Sequence[Mapping[str, Any]], rows: Sequence[PromptRow]) -> list[Group]:
    """From `LoopState.pending`. Raises UserError for a row that the data no longer has."""
    if not pending:
        return []
    by_number = {row.row: row for row in rows}
    return [Group([_from_json(sample, by_number) for sample in group["samples"]]) for group in pending]


def _to_json(sample: Sample) -> dict[str, Any]:
    data = asdict(sample)
    return {key: value for key, value in data.items() if key not in _FROM_DATA}


def _from_json(data: Mapping[str, Any], rows: Mapping[int, PromptRow]) -> Sample:
    row = rows.get(data["row"])
    if row is None:
        raise UserError(f"spec.data.train: row {data['row']} of the commit's pending samples is not in the data")
    transcript = [
        [TurnRecord(turn["new_token_ids"], Generation(**turn["generation"])) for turn in turns]
        for turns in data["transcript"]
    ]
    return Sample(
        prompt=row.prompt,
        prompt_ids=list(row.prompt_ids),
        label=row.label,
        metadata=dict(row.metadata),
        source=row.source,
        **{**data, "transcript": transcript},
    )
