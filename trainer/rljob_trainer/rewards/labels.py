"""Whether the labels of a data set can be read by the rewards that read them, before anything starts."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from rljob_api.errors import UserError
from rljob_api.v1alpha1.reward import RewardSpec

from rljob_trainer.rewards.em import golden_answers
from rljob_trainer.rewards.text import label_text

READERS: Mapping[str, Callable[[Any], Any]] = {
    "em": golden_answers,
    "dapo": lambda label: label_text(label, "dapo"),
    "deepscaler": lambda label: label_text(label, "deepscaler"),
    "math": lambda label: label_text(label, "math"),
}
"""The built-in rewards that read the label, and how. Each raises ValueError for one that is none."""


class Labelled(Protocol):
    """A row of a data set of prompts."""

    @property
    def label(self) -> Any: ...
    @property
    def row(self) -> int: ...


def check_labels(rows: Iterable[Labelled], reward: RewardSpec | None, where: str) -> None:
    """Raise UserError for the first row whose label is missing (null, NaN, blank) or of a kind that a reward of the job
    cannot read. `where` is the data set's place in the manifest."""
    readers = [READERS[function.name] for function in reward.functions if function.name in READERS] if reward else []
    for row in rows if readers else ():
        for read in readers:
            try:
                read(row.label)
            except ValueError as error:
                raise UserError(
                    f"{where}.labelKey: row {row.row}: {error}",
                    hint="leave rows without a label out, or name another column by labelKey",
                ) from None
