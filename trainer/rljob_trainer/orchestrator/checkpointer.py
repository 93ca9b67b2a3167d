"""The commits of a run: written at once or in the background, reported, and only then are older ones removed."""

import copy
import logging
from collections.abc import Callable

from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.checkpoint import Commit, CommitError, CommitWriter, prune
from rljob_trainer.checkpoint.background import BackgroundCommit
from rljob_trainer.checkpoint.store import size_of
from rljob_trainer.orchestrator.place import Place
from rljob_trainer.orchestrator.state import LoopState
from rljob_trainer.workers.rank_group import RankGroup

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 10.0


class Commits:
    """Makes commits; at most one is under way."""

    def __init__(
        self,
        job: RLJob,
        place: Place,
        ranks: RankGroup,
        *,
        durable: Callable[[LoopState, Commit], None],
        made: Callable[[LoopState, Commit], None],
        allowed: Callable[[], bool],
        tick: Callable[[], None],
        in_use: Callable[[], set[str]] = set,
    ) -> None:
        """durable: reports a commit the moment it is whole, in whatever thread wrote it. made: is told each commit in
        the main thread, later. allowed: whether this driver may still write. tick: runs about once a second during
        waits. in_use: names of commits that must stay: somebody reads them, or a report names them."""
        self._job, self._place, self._ranks = job, place, ranks
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
            self._place.job_dir, self._place.incarnation, step=state.step, policy_version=state.policy_version
        )
        frozen = copy.deepcopy(state)
        if self._asynchronous:
            writer.begin()
            self._ranks.begin_save(writer.directory)
            under_way = BackgroundCommit(
                writer,
                self._ranks.size,
                lambda done: self._publish(done, frozen),
                limit=self._limit,
                allowed=self._allowed,
            )
            self._under_way, self._last = (under_way, frozen), key
            return
        with writer:
            writer.add(self._ranks.save(writer.directory))
            made = self._publish(writer, frozen)
        self._last = key
        self._tell(frozen, made)

    def poll(self) -> None:
        """At a boundary: tell a commit that has become durable. Raises CommitError when it could not be written."""
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
            prune(self._place.job_dir, self._place.incarnation, keep, in_use=self._in_use(), good=self._good)
        except Exception:
            logger.exception("old commits could not be removed")

    def _tell(self, state: LoopState, commit: Commit) -> None:
        logger.info("commit %s", commit.name)
        self._made(state, commit)
