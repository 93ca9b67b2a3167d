"""Which weights a job starts from: another job's commit, `checkpoint.load`, `refLoad`, `model.path`, or random ones."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rljob_api.errors import UserError
from rljob_api.v1alpha1.checkpoint import WarmStart
from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.checkpoint.store import COMMIT_NAME, MANIFEST, Commit, find_commit, latest_commit, verify
from rljob_trainer.models.paths import resolve
from rljob_trainer.models.sources import CommitWeights, FolderWeights, MegatronWeights, WeightSource

logger = logging.getLogger(__name__)
Kind = Literal["hf", "megatron", "commit"]


@dataclass(frozen=True, slots=True)
class Found:
    """Weights in a folder."""

    kind: Kind
    path: Path

    def open(self, config: Any) -> WeightSource:
        """The source; `config` is that of the model which takes them up."""
        if self.kind == "commit":
            return CommitWeights(self.path)
        return MegatronWeights(self.path, config) if self.kind == "megatron" else FolderWeights(self.path)


def starting_weights(spec: RLJobSpec, job_dir: str | Path) -> Found | None:
    """Where the actor's weights come from; None: `model.path` (or `model.randomInit`), which is not looked at here.

    As in slime, `load` may point to a folder that is still empty: then it is `refLoad`, and without that the model's
    own. Raises UserError when what is named is not there, or is something else.
    """
    checkpoint = spec.checkpoint
    if checkpoint.warm_start is not None:
        return Found("commit", warm_commit(checkpoint.warm_start, job_dir).path)
    if checkpoint.load is None:
        return None
    found = find_weights(resolve(job_dir, checkpoint.load), "spec.checkpoint.load")
    if found is None and checkpoint.ref_load is not None:
        found = find_weights(resolve(job_dir, checkpoint.ref_load), "spec.checkpoint.refLoad")
        logger.warning("checkpoint.load %s is empty: starting from checkpoint.refLoad", checkpoint.load)
    elif found is None:
        logger.warning("checkpoint.load %s is empty: starting from the model", checkpoint.load)
    return found


def find_weights(path: Path, field: str) -> Found | None:
    """What a folder holds: a Hugging Face model, a Megatron checkpoint, a commit, or a job's directory (its latest good
    commit). None when it is missing or empty; UserError when it holds something else."""
    if not path.is_dir() or not any(path.iterdir()):
        return None
    if (path / MANIFEST).is_file() and COMMIT_NAME.match(path.name):
        return Found("commit", _good(_commit_at(path), field).path)
    if (path / "attempts").is_dir():
        latest = latest_commit(path).commit
        return None if latest is None else Found("commit", latest.path)
    if (path / "config.json").is_file():
        return Found("hf", path)
    from rljob_trainer.export.run import is_torch_dist

    if is_torch_dist(path):
        return Found("megatron", path)
    raise UserError(
        f"{field}: {path} is neither a Hugging Face folder, nor a Megatron checkpoint, nor a commit or job directory"
    )


def warm_commit(warm: WarmStart, job_dir: str | Path) -> Commit:
    """The commit of the other job, whose directory lies beside this one's. Raises UserError."""
    field = "spec.checkpoint.warmStart"
    other = Path(job_dir).resolve().parent / warm.job
    if other == Path(job_dir).resolve():
        raise UserError(f"{field}.job: {warm.job!r} is this job itself")
    if not other.is_dir():
        raise UserError(
            f"{field}.job: there is no directory of the job {warm.job!r} (looked at {other})",
            hint="both jobs must keep their directories beside each other, in one claim on a cluster",
        )
    if warm.commit is None:
        latest = latest_commit(other).commit
        if latest is None:
            raise UserError(f"{field}.job: the job {warm.job!r} has no good commit in {other}")
        return latest
    commit = find_commit(other, warm.commit)
    if commit is None:
        raise UserError(f"{field}.commit: the job {warm.job!r} has no commit {warm.commit!r}")
    return _good(commit, f"{field}.commit")


def _commit_at(path: Path) -> Commit:
    match = COMMIT_NAME.match(path.name)
    assert match is not None
    return Commit(path, path.resolve().parent.parent.name, int(match[1]), int(match[2] or 1))


def _good(commit: Commit, field: str) -> Commit:
    problem = verify(commit)
    if problem is not None:
        raise UserError(f"{field}: the commit {commit.name} cannot be used: {problem}")
    return commit
