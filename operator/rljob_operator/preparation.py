"""When the Job that prepares is made, what its end means, and how far it is."""

from dataclasses import dataclass, field

from rljob_trainer.config.status import PreparationStatus

from rljob_operator.objects import Obj, condition, deleting, name_of
from rljob_operator.observe import Preparation
from rljob_operator.reasons import Reason
from rljob_operator.render import prepare
from rljob_operator.trouble import last_words
from rljob_operator.view import View

DONE = "Done"


@dataclass
class Preparing:
    """The claim is not filled yet."""

    message: str
    make: list[Obj] = field(default_factory=list)
    finish: tuple[Reason, str] | None = None


def done(view: View) -> bool:
    """Whether what the retriever and the trainer read is there."""
    if view.context.spec.retriever is None or view.status.attempt > 0:  # no attempt begins before
        return True
    wanted = prepare.job(view.context)
    found = view.status.preparation
    return wanted is None or (found is not None and found.state == DONE and found.key == prepare.key(view.context))


def advance(view: View) -> Preparing | None:
    """What to do for a claim that is not filled; None when it is."""
    wanted = None if done(view) else prepare.job(view.context)
    if wanted is None:
        return None
    live = view.observed.child("Job", name_of(wanted))
    if live is None:
        return Preparing("the data are about to be prepared", make=[wanted])
    if (failed := condition(live, "Failed")).get("status") == "True":
        words = last_words(view.observed.group("prepare")) or str(failed.get("message", ""))
        if failed.get("reason") == "PodFailurePolicy":
            return Preparing(words, finish=(Reason.USER_ERROR, words))
        message = f"preparing failed {prepare.TRIES} times; the last: {words}"
        return Preparing(message, finish=(Reason.BACKOFF_LIMIT, message))
    found = view.status.preparation
    return Preparing(said(found) if found else "preparing")


def fold(view: View) -> None:
    """Take what the Job says into the status; its end stays there, so that the Job need not."""
    wanted = None if done(view) else prepare.job(view.context)
    if wanted is None:
        return
    key = prepare.key(view.context)
    live = view.observed.child("Job", name_of(wanted))
    if live is None:
        return
    if condition(live, "Complete").get("status") == "True":
        view.status.preparation = PreparationStatus(key=key, state=DONE, percent=100)
        return
    report = view.observed.preparation() or Preparation()
    view.status.preparation = PreparationStatus(
        key=key, state="Running", stage=report.stage, percent=report.percent, amount=report.amount
    )


def superfluous(view: View) -> list[Obj]:
    """Jobs that have done their work, or are not wanted now: with them their pods go.

    Not in the pass that sees the end: first the status has to say it, or a crash in between would begin anew.
    """
    wanted = None if view.finished or view.wants_suspend or _recorded(view) else prepare.job(view.context)
    keep = name_of(wanted) if wanted else None
    return [live for live in view.observed.of_kind("Job") if name_of(live) != keep and not deleting(live)]


def _recorded(view: View) -> bool:
    before = (view.observed.job.get("status") or {}).get("preparation") or {}
    return before.get("state") == DONE and before.get("key") == prepare.key(view.context)


def said(found: PreparationStatus) -> str:
    """`preparing: index, 20 % (12.3 of 60.1 GiB)`."""
    text = f"preparing: {found.stage}" if found.stage else "preparing"
    if found.percent is not None:
        text += f", {found.percent} %"
    return text + (f" ({found.amount})" if found.amount else "")
