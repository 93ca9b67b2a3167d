"""Learning health at work: what the monitor finds is reported, and acted on as `lifecycle.health` says."""

import logging
from collections.abc import Mapping
from typing import Protocol

from rljob_api.v1alpha1.health import EarlyStop, HealthPolicy
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.checkpoint import Commit, list_commits, verify
from rljob_trainer.checkpoint.loop_state import LoopState
from rljob_trainer.health.detect import Finding, longest_window
from rljob_trainer.health.early_stop import bound, measured, reached
from rljob_trainer.health.monitor import Monitor
from rljob_trainer.health.rollback import Rollback, before, guarded
from rljob_trainer.orchestrator.job_directory import Incarnation
from rljob_trainer.orchestrator.recorder import Recorder
from rljob_trainer.orchestrator.stop import Stop
from rljob_trainer.training.errors import NonFiniteError

logger = logging.getLogger(__name__)
_SEVERITY: tuple[HealthPolicy, ...] = ("Fail", "Rollback", "Pause", "Warn")


class Committing(Protocol):
    """What a policy needs of the run's commits; see `checkpointer.Checkpointer`."""

    def commit_now(self) -> None: ...

    def settle(self) -> None: ...


class LearningHealth:
    """The learning health of a run. `state.health` and `state.early_stop` are kept up to date for the next commit."""

    def __init__(
        self,
        job: RLJob,
        incarnation: Incarnation,
        recorder: Recorder,
        records: list[Rollback],
    ) -> None:
        """`records`: the rollbacks of the job so far."""
        self._policies, self._incarnation, self._recorder = job.spec.lifecycle.health, incarnation, recorder
        self._target = job.spec.lifecycle.early_stop
        self._records = records
        self._monitor = Monitor(self._policies, {})
        self._replaced = 0
        self._rollouts: dict[str, int] = {}
        """Rollouts that commits hold, by name: a commit never changes."""

    def resume(self, state: LoopState) -> None:
        """Look back as far as the commit does."""
        self._monitor = Monitor(self._policies, state.health)
        self._tell()

    # -- looking ------------------------------------------------------------------------------------------------

    def look(self, state: LoopState, values: Mapping[str, float]) -> list[Finding]:
        """Take in the numbers of the rollout that was just trained. What is new, the gravest policy first."""
        self._replaced = 0
        before = dict(self._monitor.active)
        fresh = self._monitor.look(state.rollout - 1, values)
        state.health = self._monitor.to_json()
        if before.keys() != self._monitor.active.keys() or fresh:
            self._tell()
        for finding in fresh:
            self._recorder.display.message(f"{finding.condition}: {finding.message} ({self._policy(finding)})")
            logger.warning("%s at rollout %d: %s", finding.condition, state.rollout, finding.message)
        return sorted(fresh, key=lambda finding: _SEVERITY.index(self._policy(finding)))

    def acts(self, findings: list[Finding]) -> bool:
        """Whether something more than a warning is to be done: nothing is committed before that."""
        return any(self._policy(finding) != "Warn" for finding in findings)

    # -- acting -------------------------------------------------------------------------------------------------

    def act(self, findings: list[Finding], state: LoopState, commits: Committing, *, may_commit: bool = True) -> None:
        """Do what the gravest policy says. Raises Stop for all but Warn. `may_commit`: whether weights and `state` are
        those of one boundary."""
        if not findings:
            return
        finding = findings[0]
        policy = self._policy(finding)
        if policy == "Fail":
            raise Stop("unhealthy", f"{finding.condition}: {finding.message}")
        if policy == "Rollback":
            commits.settle()  # one that became durable later would take the place of the commit to go back to
            self._roll_back(finding, state)
        if policy == "Pause":
            self._monitor.forget()  # the user has been told; after the resume the windows begin anew
            state.health = self._monitor.to_json()
            if may_commit:
                commits.commit_now()
            raise Stop("paused", f"{finding.condition}: {finding.message}")

    def not_finite(self, error: NonFiniteError, state: LoopState, commits: Committing, *, may_commit: bool) -> None:
        """A step was not applied since its loss or gradient is not finite. Returns when another rollout is to take its
        place, raises Stop otherwise. `may_commit`: whether weights and `state` are those of one boundary.
        """
        finding = Finding("NonFinite", state.rollout + 1, str(error))
        self._monitor.add(finding)
        self._tell()
        self._recorder.display.message(f"NonFinite: {error} ({self._policies.non_finite})")
        logger.error("%s", error)
        if self._policies.non_finite in ("Ignore", "Warn"):
            self._replaced += 1
            limit = self._policies.thresholds.max_replacements
            if state.stage == "RL" and self._replaced <= limit:
                return
            many = f" {self._replaced} times in a row" if state.stage == "RL" else ""
            raise Stop("unhealthy", f"NonFinite{many}: {error}")
        self.act([finding], state, commits, may_commit=may_commit)

    def _roll_back(self, finding: Finding, state: LoopState) -> None:
        number = len(self._records) + 1
        why = f"{finding.condition}: {finding.message}"
        if number > self._policies.max_rollbacks:
            limit = self._policies.max_rollbacks
            raise Stop("unhealthy", f"{why}; after {limit} rollbacks (lifecycle.health.maxRollbacks) it is there again")
        target = before(self._commits(), finding.since)
        name = target.name if target is not None else ""
        Rollback(number, self._incarnation.name, name, state.stage, dict(state.data), why).write(
            self._incarnation.job_dir
        )
        step = target.step if target is not None else 0
        if target is not None:
            held = LoopState.from_json(target.loop_state())
            self._recorder.committed(held, name)
        where = f"the commit {name} (step {step})" if target is not None else "the beginning: no commit is from before"
        raise Stop("rollback", f"{why}; rollback {number} of at most {self._policies.max_rollbacks}, to {where}")

    def _commits(self) -> list[tuple[Commit, int, bool]]:
        """Good commits of the job, oldest first: rollouts held, and whether learning was healthy."""
        found = []
        for commit in list_commits(self._incarnation.job_dir):
            if verify(commit) is None:
                state = LoopState.from_json(commit.loop_state())
                found.append((commit, state.rollout, not state.health.get("active")))
        return found

    def guarded(self) -> set[str]:
        """Names of this incarnation's commits that a rollback may need, however many newer ones there are."""
        policies = self._policies
        windows = (
            policies.reward_stalled, policies.entropy_collapsed, policies.mismatch_high,
            policies.response_length_exploding,
        )  # fmt: skip
        if "Rollback" not in windows:
            return set()
        held = {}
        for commit in list_commits(self._incarnation.job_dir, self._incarnation.name):
            try:
                known = self._rollouts.get(commit.name)
                held[commit.name] = int(commit.loop_state()["rollout"]) if known is None else known
            except (OSError, ValueError, KeyError) as error:  # torn: nothing to go back to
                logger.warning("commit %s cannot be read: %s", commit.name, error)
        self._rollouts = held
        kept = guarded(list(held.values()), max(held.values(), default=0), longest_window(policies.thresholds))
        return {name for name, rollouts in held.items() if rollouts in kept}

    # -- early stop ---------------------------------------------------------------------------------------------

    def done(self, state: LoopState, values: Mapping[str, float], moment: str | None) -> bool:
        """Whether the target of `lifecycle.earlyStop` is reached. `moment`: of the evaluation made just now, if any."""
        target = self._target
        if target is None:
            return False
        now = {} if moment is None else _of_moment(state, moment)
        value = measured(target, values, now)
        if value is None:
            return False
        hits = int(state.early_stop.get("hits", 0)) + 1 if reached(target, value) else 0
        state.early_stop = {"hits": hits}
        if hits < target.times:
            return False
        state.early_stop |= {"value": value, "step": state.step, "target": _words(target)}
        self._recorder.display.message(f"target reached: {_words(target)}, it is {value:.4g}")
        return True

    def still_done(self, state: LoopState) -> bool:
        """Whether a target that was reached before is one still: the manifest may ask for more now."""
        return self._target is not None and state.stopped_early and reached(self._target, state.early_stop["value"])

    # -- telling ------------------------------------------------------------------------------------------------

    def _policy(self, finding: Finding) -> HealthPolicy:
        return self._policies.policy(finding.condition)

    def _tell(self) -> None:
        self._recorder.health(
            {
                finding.condition: {"since": finding.since, "policy": self._policy(finding), "message": finding.message}
                for finding in self._monitor.active.values()
            }
        )


def _of_moment(state: LoopState, moment: str) -> dict[str, dict[str, float]]:
    suffix = f"/{moment}"
    return {name.removesuffix(suffix): scores for name, scores in state.evaluations.items() if name.endswith(suffix)}


def _words(target: EarlyStop) -> str:
    times = f", {target.times} times in a row" if target.times > 1 else ""
    return f"{target.metric} {bound(target)}{times}"
