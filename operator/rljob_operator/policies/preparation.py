"""When the Job that prepares is made, what its end means, and how far it is."""

from dataclasses import replace

from rljob_api.contract.progress import Preparation
from rljob_api.contract.reasons import Reason
from rljob_api.v1alpha1.status import PreparationStatus, RLJobStatus

from rljob_operator.kube.objects import Obj, condition, deleting, name_of
from rljob_operator.policies.decision import Decision, wants_suspend
from rljob_operator.resources import prepare
from rljob_operator.state.job_view import JobView
from rljob_operator.state.pod_diagnosis import last_words
from rljob_operator.state.refusals import refusal_text

DONE = "Done"


def done(view: JobView, decided: Decision) -> bool:
    """Whether what the retriever and the trainer read is there."""
    if view.context.spec.retriever is None or decided.status.attempt > 0:  # no attempt begins before
        return True
    wanted = prepare.job(view.context)
    found = decided.status.preparation
    return wanted is None or (found is not None and found.state == DONE and found.key == prepare.key(view.context))


def record(view: JobView, decided: Decision) -> Decision:
    """Take what the Job says into the status; its end stays there, so that the Job need not."""
    wanted = None if done(view, decided) else prepare.job(view.context)
    live = view.observed.child("Job", name_of(wanted)) if wanted else None
    if live is None:
        return decided
    key = prepare.key(view.context)
    if condition(live, "Complete").get("status") == "True":
        return decided.with_status(preparation=PreparationStatus(key=key, state=DONE, percent=100))
    report = view.observed.preparation() or Preparation()
    return decided.with_status(
        preparation=PreparationStatus(
            key=key, state="Running", stage=report.stage, percent=report.percent, amount=report.amount
        )
    )


def advance(view: JobView, decided: Decision) -> Decision | None:
    """What to do for a claim that is not filled; None when it is."""
    wanted = None if done(view, decided) else prepare.job(view.context)
    if wanted is None:
        return None
    live = view.observed.child("Job", name_of(wanted))
    if live is None:
        decided = replace(decided, create=(wanted,))
        if view.refuses(wanted["kind"], name_of(wanted)):
            return decided.wait(*refusal_text(view.refused))
        started = PreparationStatus(key=prepare.key(view.context), state="Running")
        return decided.with_status(preparation=started).wait(Reason.WAITING_FOR_RETRIEVER, "preparing")
    if (failed := condition(live, "Failed")).get("status") == "True":
        words = last_words(view.observed.group("prepare")) or str(failed.get("message", ""))
        if failed.get("reason") == "PodFailurePolicy":
            return decided.with_end((Reason.USER_ERROR, words)).wait(Reason.WAITING_FOR_RETRIEVER, words)
        message = f"preparing failed {prepare.TRIES} times; the last: {words}"
        return decided.with_end((Reason.BACKOFF_LIMIT, message)).wait(Reason.WAITING_FOR_RETRIEVER, message)
    found = decided.status.preparation
    return decided.wait(Reason.WAITING_FOR_RETRIEVER, progress_text(found) if found else "preparing")


def superfluous(view: JobView, decided: Decision) -> list[Obj]:
    """Jobs of another preparation, whose end must not be taken for this one's, and those that run though they are not
    wanted now. With them their pods go. One that has ended holds nothing, and goes by its own time to live."""
    wanted = prepare.job(view.context)
    keep = name_of(wanted) if wanted else None
    unwanted = decided.finished or wants_suspend(view, decided)
    jobs = [live for live in view.observed.of_kind("Job") if not deleting(live)]
    return [live for live in jobs if name_of(live) != keep or (unwanted and not ended(live))]


def ended(job: Obj) -> bool:
    """Whether a Job has done its work or given up."""
    return any(condition(job, kind).get("status") == "True" for kind in ("Complete", "Failed"))


def recorded(status: RLJobStatus) -> bool:
    """Whether the status says that something has been prepared."""
    return status.preparation is not None and status.preparation.state == DONE


def progress_text(found: PreparationStatus) -> str:
    """`preparing: index, 20 % (12.3 of 60.1 GiB)`."""
    text = f"preparing: {found.stage}" if found.stage else "preparing"
    if found.percent is not None:
        text += f", {found.percent} %"
    return text + (f" ({found.amount})" if found.amount else "")
