"""What every training backend offers: one rank of it, as `training.rank` and the weights' export use it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from rljob.types import TokenSignals, TrainSample
from torch import Tensor

from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.weights.buckets import TensorInfo

Stage = Literal["sft", "rl"]


class BackendRank(Protocol):
    """One rank. All ranks call the same methods in the same order; see `fsdp.FsdpBackend` and `megatron.rank`."""

    rank: int
    stage: Stage

    def open_rendezvous(self) -> tuple[str, int]: ...

    def setup(self, host: str, port: int) -> None: ...

    def load(self, commit_dir: str | Path | None) -> Stage: ...

    def begin_rl(self) -> None: ...

    def sft_step(self, rows: Sequence[Any], *, lr_step: int, total_steps: int) -> dict[str, float]: ...

    def compute_logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]: ...

    def token_signals(self, samples: Sequence[TrainSample]) -> list[TokenSignals]: ...

    def rl_step(
        self,
        samples: Sequence[TrainSample],
        *,
        lr_step: int,
        total_steps: int,
        old_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]: ...

    def full_weights(self) -> dict[str, Any]: ...

    def weights_layout(self) -> list[TensorInfo]: ...

    def gather_weights(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]: ...

    def held(self) -> Iterator[Tensor]: ...

    def save(self, directory: str | Path) -> list[FileEntry]: ...

    def export_hf(self, directory: str | Path) -> None: ...

    def close(self) -> None: ...
