"""Whether the labels of a data set can be read by the rewards that read them, before anything starts."""

from collections.abc import Iterable
from typing import Any, Protocol

from rljob_api.catalogue.rewards import REWARDS
from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardSpec

from rljob_trainer.rewards.em import golden_answers
from rljob_trainer.rewards.text import label_text


def read_label(reward: str, label: Any) -> None:
    """Raises ValueError for a label that the built-in reward cannot read."""
    match REWARDS[reward].label:
        case "text":
            label_text(label, reward)
        case "answers":
            golden_answers(label)


class Labelled(Protocol):
    """A row of a data set of prompts."""

    @property
    def label(self) -> Any: ...
    @property
    def row(self) -> int: ...


def check_labels(rows: Iterable[Labelled], reward: RewardSpec | None, where: str) -> None:
    """Raise UserError for the first row whose label is missing (null, NaN, blank) or of a kind that a reward of the job
    cannot read. `where` is the data set's place in the manifest."""
    names = [function.name for function in reward.functions if function.name in REWARDS] if reward else []
    reading = [name for name in names if REWARDS[name].label != "none"]
    for row in rows if reading else ():
        for name in reading:
            try:
                read_label(name, row.label)
            except ValueError as error:
                raise UserError(
                    f"{where}.labelKey: row {row.row}: {error}",
                    hint="leave rows without a label out, or name another column by labelKey",
                ) from None
