"""The whole run: evaluation or generation alone, or SFT, reinforcement learning, evaluation, export, report."""

import logging
from pathlib import Path

from rljob_trainer.checkpoint import Commit, CommitError, find_commit, latest_commit, verify
from rljob_trainer.health.rollback import Rollback
from rljob_trainer.orchestrator.evaluate import evaluate_at_end, evaluate_only
from rljob_trainer.orchestrator.generate import generate_only
from rljob_trainer.orchestrator.rl import train_rl
from rljob_trainer.orchestrator.run import Run
from rljob_trainer.orchestrator.sft import train_sft
from rljob_trainer.rollout.asynchronous import train_async

logger = logging.getLogger(__name__)


def choose_commit(job_dir: Path, resume_from: str | None) -> Commit | None:
    """The commit to go on from: the named one, the latest good one when none is named, or None for `none`.

    Raises CommitError when the named commit is not there or is damaged: going on from another one would silently
    undo what somebody decided.
    """
    if resume_from == "none":
        return None
    if resume_from is None:
        return latest_commit(job_dir).commit
    commit = find_commit(job_dir, resume_from)
    if commit is None:
        raise CommitError(f"the commit {resume_from} is not in {job_dir}")
    problem = verify(commit)
    if problem is not None:
        raise CommitError(f"the commit {resume_from} cannot be used: {problem}")
    return commit


def train(run: Run, commit: Commit | None, back: Rollback | None = None) -> None:
    """What the job's mode asks for. From wherever `commit` stands to the end. Raises Stop when asked to end before.
    `back`: the rollback that leads to `commit`."""
    run.start(commit, back)
    if run.job.spec.mode == "Evaluate":
        evaluate_only(run)
    elif run.job.spec.mode == "Generate":
        generate_only(run)
    else:
        _train(run)
    run.commits.wait()


def _train(run: Run) -> None:
    if run.state.stage == "SFT":
        train_sft(run)
    if run.state.stage == "RL":
        (train_async if run.job.spec.placement.type == "async" else train_rl)(run)
    run.sync_weights()
    evaluate_at_end(run)
    run.before_training()  # what follows is the ranks' alone
    run.commits.wait()
    if run.job.spec.checkpoint.save_hf:
        run.export_hf(run.place.directory / "model")
    run.hub.ended(run.last_commit, run.place.directory / "model")
