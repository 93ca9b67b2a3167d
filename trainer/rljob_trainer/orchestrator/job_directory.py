"""The job's directory: which job it belongs to, whether this run may go on in it, and where an incarnation writes."""

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rljob_api.contract.job_document import spelt_out
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.atomic_files import write_file

IDENTITY_FILE = "job.json"
ATTEMPTS = "attempts"
_FREE = (
    "evaluation",
    "images",
    "lifecycle",
    "storage",
    "tracking",
    "checkpoint.asynchronous",
    "checkpoint.hub",
    "checkpoint.keep",
    "checkpoint.overwrite",
    "checkpoint.saveAtEpochEnd",
    "checkpoint.saveHf",
    "checkpoint.saveInterval",
    "checkpoint.sftSaveInterval",
    "retriever.pod",
    "retriever.port",
    "retriever.autoscaling",
    "retriever.replicas",
    "retriever.storage",
    "rollout.maxEngineRestarts",
    "rollout.numRollout",
    "rollout.pod",
    "rollout.replicas",
    "rollout.timeoutSeconds",
    "trainer.headPod",
    "trainer.pod",
    "trainer.rankTimeoutSeconds",
)
"""What may change between a run and its resumption; everything else would make the result neither job's."""


@dataclass(frozen=True)
class Incarnation:
    """An attempt's process in the job's directory: what it writes lies beneath a folder of its own."""

    job_dir: Path
    name: str
    """`<attempt:04d>-<id>`."""
    local: bool
    """Whether the driver runs outside a cluster, with a Ray of its own."""

    @property
    def directory(self) -> Path:
        """The incarnation's own directory, the only one it writes to."""
        return self.job_dir / ATTEMPTS / self.name


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by dotted path; lists are leaves."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def learning_fields(job: RLJob) -> dict[str, Any]:
    """The fields of the spec that decide what is learned, by dotted path. They are compared with what images of other
    versions have recorded, so fields that those may not know are there only when they are set."""
    flat = flatten(spelt_out(job.spec))
    return {
        path: value
        for path, value in flat.items()
        if not any(path == free or path.startswith(f"{free}.") for free in _FREE)
    }


def has_commits(job_dir: Path) -> bool:
    """Whether any incarnation left a finished commit."""
    return any((job_dir / ATTEMPTS).glob("*/commits/*/manifest.json"))


def claim(job_dir: Path, job: RLJob, *, may_resume: bool, incarnation: str | None = None) -> None:
    """Make `job_dir` the job's own, or raise UserError when it is another's or its commits do not fit.

    `may_resume`: with commits of this job there, going on is what was asked for (a retry, or `checkpoint.overwrite:
    Resume`). With `Replace`, earlier attempts are set aside; not that of `incarnation`, which is asking.
    """
    job_dir.mkdir(parents=True, exist_ok=True)
    path = job_dir / IDENTITY_FILE
    mine = {"name": job.metadata.name, "namespace": job.metadata.namespace, "fields": learning_fields(job)}
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        if there["name"] != mine["name"] or there["namespace"] not in (None, mine["namespace"]):
            raise UserError(
                f"the directory {job_dir} belongs to the job {there['name']!r}, not to {mine['name']!r}",
                hint="give this job a directory of its own (--dir)",
            )
        if has_commits(job_dir):
            if job.spec.checkpoint.overwrite == "Replace" and not may_resume:
                _set_aside(job_dir, incarnation)
            else:
                _check_commits(job_dir, job, there["fields"], mine["fields"], may_resume=may_resume)
    elif has_commits(job_dir):
        raise UserError(f"the directory {job_dir} has commits but no {IDENTITY_FILE}: whose they are cannot be told")
    write_file(path, json.dumps(mine, indent=1, sort_keys=True), fsync=False)


def _check_commits(job_dir: Path, job: RLJob, there: Any, mine: Any, *, may_resume: bool) -> None:
    if job.spec.checkpoint.overwrite == "Never" and not may_resume:
        raise UserError(
            f"{job_dir} already has commits of this job and spec.checkpoint.overwrite is Never",
            hint="give another directory (--dir), or set overwrite to Resume or Replace",
        )
    changed = sorted(key for key in set(there) | set(mine) if there.get(key) != mine.get(key))
    if changed:
        shown = ", ".join(f"spec.{key} ({there.get(key)!r} → {mine.get(key)!r})" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{job_dir} has commits of this job with other settings: {shown}{more}",
            hint="undo the change, give another directory (--dir), or set spec.checkpoint.overwrite: Replace",
        )


def _set_aside(job_dir: Path, incarnation: str | None) -> None:
    aside = job_dir / f"{ATTEMPTS}-before-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"
    aside.mkdir(exist_ok=True)
    for path in (job_dir / ATTEMPTS).iterdir():
        if path.name != incarnation:
            path.rename(aside / path.name)
    for name in ("summary.json", "report.html"):
        (job_dir / name).unlink(missing_ok=True)


def new_incarnation(attempt: int, identity: str | None = None) -> str:
    """`<attempt:04d>-<8 hex digits>`."""
    return f"{attempt:04d}-{identity or secrets.token_hex(4)}"


def last_attempt(job_dir: Path) -> int:
    """Number of the latest attempt that left a directory; 0 for none."""
    numbers = [int(path.name[:4]) for path in (job_dir / ATTEMPTS).glob("[0-9][0-9][0-9][0-9]-*")]
    return max(numbers, default=0)
