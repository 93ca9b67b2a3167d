"""TensorBoard event files, one per attempt in one folder: TensorBoard shows them as one run."""

from collections.abc import Mapping, Sequence
from typing import Any

from rljob_api.v1alpha1.tracking import TensorBoardSpec

from rljob_trainer.metrics.trackers.base import Completion, RunFacts


class TensorBoardTracker:
    """What an attempt wrote after the commit that the next one starts from is purged from view by that one."""

    name = "tensorboard"

    def __init__(self, spec: TensorBoardSpec, facts: RunFacts) -> None:
        self._folder, self._facts = facts.job_dir / spec.log_dir, facts
        self._writer: Any = None

    def start(self) -> str | None:
        """See Tracker."""
        from torch.utils.tensorboard import SummaryWriter

        resumed = self._facts.resumed_step
        self._writer = SummaryWriter(
            str(self._folder),
            purge_step=None if resumed is None else resumed + 1,
            filename_suffix=f".{self._facts.incarnation}",
        )
        return str(self._folder)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for key, value in values.items():
            self._writer.add_scalar(key.replace("@", "_at_"), value, step)  # a tag holds no @
        self._writer.flush()

    def completions(self, step: int, name: str, rows: Sequence[Completion]) -> None:
        """See Tracker."""
        for number, row in enumerate(rows):
            self._writer.add_text(f"completions/{name}/{number}", _markdown(row), step)

    def close(self, succeeded: bool) -> None:
        """See Tracker."""
        if self._writer is not None:
            self._writer.close()


def _markdown(row: Completion) -> str:
    """As preformatted text: the response is not ours to render."""
    head = f"reward {row.reward}, {row.status}, policy versions {', '.join(map(str, row.policy_versions))}"
    text = f"{row.prompt}\n⟶\n{row.response}\n\nlabel: {row.label}"
    return f"{head}\n\n" + "\n".join(f"    {line}" for line in text.split("\n"))
