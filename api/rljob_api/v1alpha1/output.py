"""`spec.output`: what a generate-only job writes."""

from typing import Literal

from rljob_api.v1alpha1.base import ApiModel


class OutputSpec(ApiModel):
    """Samples of a job with `mode: Generate`, written to `samples.jsonl` or `samples.parquet` in the job's directory.

    A row can be trained on by `sft.dataset.format: prompt_completion` (single turns) or `segments` (any sample).
    """

    format: Literal["jsonl", "parquet"] = "jsonl"
    """Kind of file."""
    min_reward: float | None = None
    """Samples of a lower reward are left out, and counted."""
    completed_only: bool = True
    """Samples that failed or were cut off by a length limit are left out, and counted."""
