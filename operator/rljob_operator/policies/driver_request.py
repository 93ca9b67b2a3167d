"""What the driver is asked (`request.json`): to commit and end, and how many engines to have on which pods."""

from dataclasses import replace

from rljob_api.contract.request import Request
from rljob_api.rules.arithmetic import rollout_pods
from rljob_api.v1alpha1.status import AttemptStatus

from rljob_operator.kube.objects import rfc3339
from rljob_operator.policies import disruption
from rljob_operator.policies.attempt_outcome import Outcome
from rljob_operator.policies.decision import Decision, wants_suspend
from rljob_operator.state.job_view import JobView


def ask(view: JobView, decided: Decision) -> Decision:
    """Decide what the driver is asked."""
    return replace(decided, request=_request(view, decided))


def _request(view: JobView, decided: Decision) -> Request:
    """The same as before while nothing changes, or while there is no driver to ask; written for the first attempt from
    the start."""
    old, attempt, scaling = view.asked, decided.status.attempt, decided.scaling
    if old and attempt and decided.active is None:
        return old | {"drain": [], "drainSince": None} if old.get("drain") else old
    suspend = wants_suspend(view, decided) or disruption.leaving(view, decided) is not None
    wanted: Request = {"suspend": suspend, "attempt": attempt or 1}
    engines = scaling.engines or (0 if attempt else rollout_pods(decided.context.spec))
    if engines:
        wanted |= {"engines": engines, "drain": list(scaling.drain), "drainSince": scaling.since}
    elif "engines" in old:
        wanted |= {"engines": None, "drain": [], "drainSince": None}
    if wanted.items() <= old.items():
        return old
    asked = rfc3339(view.now) if suspend else None
    if asked and old.get("suspend") is True and old.get("attempt") == attempt:
        asked = str(old.get("requestedAt") or asked)
    generation = view.observed.job["metadata"].get("generation", 0)
    return {**wanted, "generation": generation, "requestedAt": asked}


def suspended(view: JobView, decided: Decision, attempt: AttemptStatus) -> tuple[Outcome | None, tuple[float, ...]]:
    """The outcome of a suspend that need not, or will not, wait for the driver any longer; None while it is waited
    for, with the seconds after which to look again."""
    if not wants_suspend(view, decided):
        return None, ()
    if view.report_of(decided.status.attempt) is None:
        return Outcome("Suspended", "suspended before the driver had started", reason="Suspended"), ()
    limit = view.context.spec.lifecycle.suspend_timeout_seconds
    if view.asked.get("suspend") is not True or view.asked.get("attempt") != attempt.number:
        return None, (limit + 1.0,)
    if left := view.left(str(view.asked.get("requestedAt") or rfc3339(view.now)), limit):
        return None, (left + 1.0,)
    return Outcome("Suspended", f"the driver did not commit within {limit} s", reason="Suspended"), ()
