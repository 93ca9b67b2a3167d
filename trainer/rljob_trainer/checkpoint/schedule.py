"""When a commit is due: by interval, and at the end of epochs."""

from collections.abc import Mapping
from typing import Any

from rljob_api.v1alpha1.checkpoint import CheckpointSpec


def epochs_done(cursor: Mapping[str, Any]) -> int:
    """Whole epochs of prompts that were taken, from the cursor of the prompt source; 0 for an empty one."""
    if not cursor.get("rows"):
        return 0
    return (int(cursor["epoch"]) * int(cursor["rows"]) + int(cursor["position"])) // int(cursor["rows"])


def rollout_due(spec: CheckpointSpec, rollout: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether to commit after `rollout` rollouts; `before` and `after` are the data cursors around the last one."""
    if spec.save_interval and rollout % spec.save_interval == 0:
        return True
    return spec.save_at_epoch_end and epochs_done(after) > epochs_done(before)


def next_sft_boundary(spec: CheckpointSpec, step: int, total: int, batch: int, rows: int) -> int:
    """The next SFT step after `step` at which a commit is due, at most `total`. An epoch ends with the step that takes
    its last row: `rows` rows, `batch` a step, epochs one after the other without a gap."""
    boundary = total
    if spec.sft_save_interval:
        boundary = min(boundary, (step // spec.sft_save_interval + 1) * spec.sft_save_interval)
    if spec.save_at_epoch_end:
        epoch = step * batch // rows + 1
        boundary = min(boundary, -(-epoch * rows // batch))
    return boundary
