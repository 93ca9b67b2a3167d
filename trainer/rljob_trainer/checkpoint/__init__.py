"""Commits: one directory each, whole or not there at all."""

from rljob_trainer.checkpoint.store import (
    Commit,
    CommitError,
    CommitWriter,
    LatestCommit,
    SkippedCommit,
    find_commit,
    latest_commit,
    list_commits,
    prune,
    verify,
)

__all__ = [
    "Commit",
    "CommitError",
    "CommitWriter",
    "LatestCommit",
    "SkippedCommit",
    "find_commit",
    "latest_commit",
    "list_commits",
    "prune",
    "verify",
]
