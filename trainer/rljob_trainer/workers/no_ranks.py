"""In the place of the trainer ranks where nothing is trained. The engines load `spec.model` themselves."""

from pathlib import Path
from typing import Any

from rljob_trainer.workers.rank_group import RankGroup


class NoRanks(RankGroup):
    """No process, no state: a commit holds where the loop stands, and nothing else."""

    def __init__(self) -> None:
        self.size = 0
        self._ranks = []

    def start(self) -> None:
        """Nothing to start."""

    def load(self, commit: Path | None) -> None:
        """Nothing to load."""

    def begin_rl(self) -> None:
        """Nothing to freeze."""

    def full_weights(self) -> dict[str, Any]:
        """None."""
        return {}

    def save(self, directory: Path) -> list[Any]:
        """No file."""
        return []

    def begin_save(self, directory: Path) -> None:
        """No file."""

    def export_hf(self, directory: Path) -> None:
        """Nothing that is not there already."""
