"""The commits of a run: chosen to go on from, written at once or in the background, reported, uploaded; and only then
are older ones removed."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.checkpoint import (
    Commit,
    CommitError,
    CommitWriter,
    find_commit,
    latest_commit,
    prune,
    verify,
)
from rljob_trainer.checkpoint.background import BackgroundCommit
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.checkpoint.store import size_of
from rljob_trainer.orchestrator.context import RunContext
from rljob_trainer.orchestrator.hub_uploads import HubUploads
from rljob_trainer.orchestrator.job_directory import Incarnation
from rljob_trainer.orchestrator.observer import Observer
from rljob_trainer.orchestrator.stop import StopFlag
from rljob_trainer.orchestrator.workers import Workers
from rljob_trainer.workers.rank_group import RankGroup

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 10.0


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


class Checkpointer:
    """Commits the run's state, uploads what was committed, and ends the run at a boundary when it is asked to."""

    def __init__(
        self,
        context: RunContext,
        state: LoopState,
        stop: StopFlag,
        workers: Workers,
        observer: Observer,
        hub: HubUploads,
    ) -> None:
        recorder = observer.recorder
        self._state, self._stop, self._workers, self._observer, self._hub = state, stop, workers, observer, hub
        self.at_boundary = True
        """Whether weights and state belong together; not while the rest of a rollout's steps gets other samples."""
        self.last: Commit | None = None
        """The commit that the run has gone on from, or has made last."""
        self._commits = Commits(
            context.job,
            context.incarnation,
            workers.ranks,
            durable=lambda state, commit: recorder.committed(state, commit.name),
            made=self._made,
            allowed=stop.may_write,
            tick=observer.beat,
            in_use=lambda: hub.in_use() | observer.health.guarded() | recorder.reported_commits(),
        )

    def resumed(self, commit: Commit) -> None:
        """The run goes on from `commit`, whose state is that of the run."""
        self.last = commit
        self._commits.resumed(self._state)

    def beat_or_stop(self) -> None:
        """The observer's `beat`, and `stop_here`: for waits that may be left at once."""
        self._observer.beat()
        self.stop_here()

    def stop_here(self) -> None:
        """At a boundary: commit and raise Stop when somebody asked for an end. Raises CommitError when a commit that
        was under way could not be written."""
        self.poll()
        if self._stop.requested and self.at_boundary:
            if self._stop.may_write():
                self.commit()
                self.wait()
            self._stop.check()

    def commit(self) -> None:
        """Make everything that is needed to go on from here durable, or begin to (`checkpoint.asynchronous`)."""
        if not self._stop.may_write():
            self._stop.check()
        with self._workers.ranks_alone(), self._observer.timer.phase("commit"):
            self._commits.commit(self._state)

    def commit_now(self) -> None:
        """Commit the state as it is, also where one of this step is there already, and wait until it is durable."""
        self._commits.again()
        self.commit()
        self.wait()

    def poll(self) -> None:
        """Take in what became of commits and uploads in the background. Raises CommitError for one that failed."""
        self._commits.poll()
        self._hub.poll()

    def wait(self) -> None:
        """Wait (bounded) until no commit is under way. Raises CommitError."""
        self._commits.wait()

    def settle(self) -> None:
        """Wait (bounded) until no commit is under way. A commit that could not be written is logged."""
        self._commits.settle()

    def export_hf(self, directory: Path) -> None:
        """Write the model as a Hugging Face folder."""
        with self._workers.ranks_alone():
            self._workers.need_ranks().export_hf(directory)

    def upload_final(self, model: Path) -> None:
        """All steps are trained: push the final model, and wait for uploads under way. `model`: its folder, if any."""
        self._hub.ended(self.last, model)

    def close(self) -> None:
        """The run ends, well or not: a commit that is nearly written gets a moment more."""
        self._commits.close()
        self._hub.close()

    def _made(self, state: LoopState, commit: Commit) -> None:
        self.last = commit
        self._hub.committed(state, commit, self.export_hf)


class Commits:
    """Makes commits; at most one is under way."""

    def __init__(
        self,
        job: RLJob,
        incarnation: Incarnation,
        ranks: RankGroup | None,
        *,
        durable: Callable[[LoopState, Commit], None],
        made: Callable[[LoopState, Commit], None],
        allowed: Callable[[], bool],
        tick: Callable[[], None],
        in_use: Callable[[], set[str]] = set,
    ) -> None:
        """ranks: None where nothing is trained; a commit then holds where the loop stands, and nothing else. durable:
        reports a commit the moment it is whole, in whatever thread wrote it. made: called with each commit
        in the main thread, later. allowed: whether this driver may still write. tick: runs about once a second during
        waits. in_use: names of commits that must stay: somebody reads them, or a report names them."""
        self._job, self._incarnation, self._ranks = job, incarnation, ranks
        self._durable, self._made = durable, made
        self._allowed, self._tick, self._in_use = allowed, tick, in_use
        self._limit = float(job.spec.trainer.rank_timeout_seconds)
        self._asynchronous = job.spec.checkpoint.asynchronous
        self._under_way: tuple[BackgroundCommit, LoopState] | None = None
        self._last: tuple[str, int] | None = None
        self._good: dict[str, int] = {}
        """Commits that this process has written, or read and found good, and their sizes in bytes."""
        self._ending = False

    def resumed(self, state: LoopState) -> None:
        """`state` is that of a commit already."""
        self._last = (state.stage, state.step)

    def again(self) -> None:
        """The next commit is made although one of its step is there."""
        self._last = None

    def commit(self, state: LoopState) -> None:
        """Make `state` durable, or begin to, after the one before. Nothing happens when it is already."""
        key = (state.stage, state.step)
        if self._last == key:
            return
        self.wait()
        writer = CommitWriter(
            self._incarnation.job_dir, self._incarnation.name, step=state.step, policy_version=state.policy_version
        )
        frozen = copy.deepcopy(state)
        if self._asynchronous:
            writer.begin()
            if self._ranks is not None:
                self._ranks.begin_save(writer.directory)
            under_way = BackgroundCommit(
                writer,
                0 if self._ranks is None else self._ranks.size,
                lambda done: self._publish(done, frozen),
                limit=self._limit,
                allowed=self._allowed,
            )
            self._under_way, self._last = (under_way, frozen), key
            return
        with writer:
            writer.add([] if self._ranks is None else self._ranks.save(writer.directory))
            made = self._publish(writer, frozen)
        self._last = key
        self._tell(frozen, made)

    def poll(self) -> None:
        """At a boundary: pass on a commit that has become durable. Raises CommitError when it could not be written."""
        if self._under_way is not None and self._under_way[0].done:
            (under_way, state), self._under_way = self._under_way, None
            self._tell(state, under_way.result())

    def wait(self) -> None:
        """Wait (bounded) until nothing is under way. Raises CommitError."""
        if self._under_way is not None:
            self._under_way[0].wait(self._limit, self._tick)
            self.poll()

    def settle(self) -> None:
        """Wait (bounded) until nothing is under way. A commit that could not be written is logged."""
        try:
            self.wait()
        except CommitError as error:
            logger.error("%s", error)

    def close(self) -> None:
        """The run ends, well or not: what is nearly written gets a moment more, and takes no other commit's place."""
        self._ending = True
        if self._under_way is None:
            return
        (under_way, state), self._under_way = self._under_way, None
        try:
            made = under_way.wait(CLOSE_SECONDS)
        except Exception as error:  # noqa: BLE001 - the run ends for a reason of its own, which must not be hidden
            logger.error("the last commit is lost: %s", error)
        else:
            self._tell(state, made)

    def _publish(self, writer: CommitWriter, state: LoopState) -> Commit:
        """Make the commit, report it, and remove older ones. In this order: a driver that dies while it removes files
        has lost nothing, and what a report names is there."""
        made = writer.commit(state.to_json(), self._job.to_manifest())
        self._good[made.name] = size_of(made)
        self._durable(state, made)
        self._prune()
        return made

    def _prune(self) -> None:
        """Remove commits that are no longer kept. That it fails (a volume that deletes nothing, a file that is held
        open) is no reason to fail the run."""
        try:
            if self._ending or not self._allowed():
                return
            keep = self._job.spec.checkpoint.keep
            prune(self._incarnation.job_dir, self._incarnation.name, keep, in_use=self._in_use(), good=self._good)
        except Exception:
            logger.exception("old commits could not be removed")

    def _tell(self, state: LoopState, commit: Commit) -> None:
        logger.info("commit %s", commit.name)
        self._made(state, commit)
