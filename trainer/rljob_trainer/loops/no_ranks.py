"""In the place of the trainer ranks where nothing is trained: the weights are those of `spec.model`."""

from functools import cached_property
from pathlib import Path
from typing import Any

from rljob_trainer.config.job import RLJob
from rljob_trainer.loops.ranks import RankGroup


class NoRanks(RankGroup):
    """No process, no state: a commit holds where the loop stands, and nothing else."""

    def __init__(self, job: RLJob, job_dir: Path) -> None:
        self.size = 0
        self._ranks = []
        self._job, self._job_dir = job, job_dir

    def start(self) -> None:
        """Nothing to start."""

    def load(self, commit: Path | None) -> None:
        """Nothing to load."""

    def begin_rl(self) -> None:
        """Nothing to freeze."""

    def full_weights(self) -> dict[str, Any]:
        """Weights of `spec.model` as arrays under their Hugging Face names. Raises UserError without them."""
        return self._weights

    def save(self, directory: Path) -> list[Any]:
        """No file."""
        return []

    def export_hf(self, directory: Path) -> None:
        """Nothing that is not there already."""

    @cached_property
    def _weights(self) -> dict[str, Any]:
        from rljob_trainer.models import build_model, load_tokenizer
        from rljob_trainer.weights import to_array

        spec = self._job.spec
        tokenizer = load_tokenizer(spec.model, self._job_dir)
        model = build_model(spec.model, self._job_dir, tokenizer, seed=spec.seed)
        return {name: to_array(parameter) for name, parameter in model.named_parameters()}
