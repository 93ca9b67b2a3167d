"""A backend is a class and one line of the catalogue: everything else of a rank works with it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob.types import TokenSignals
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.checkpoint.tensors import ShardReader
from rljob_trainer.training import registry
from rljob_trainer.training.interface import Backend, EntropyMode, OptimizerStep, StepLoss
from rljob_trainer.training.lr_schedule import learning_rate
from rljob_trainer.training.microbatch import MicroBatch, Row, collate
from rljob_trainer.training.rank_state import read_about, restore_generators, state_writer
from rljob_trainer.weights import weights_digest
from rljob_trainer.weights.buckets import TensorInfo
from torch import Tensor

from trainer.tests.training.tiny import VOCABULARY, demonstrations, samples


class Bigrams(Backend):
    """A table of logits: the next id by the last one."""

    def __init__(self, job: RLJob, job_dir: str | Path, rank: int, world_size: int) -> None:
        self.stage, self.device, self.uses_process_group = "sft", torch.device("cpu"), False
        self.table = torch.nn.Parameter(torch.zeros(VOCABULARY, VOCABULARY))
        self.optimizer = torch.optim.SGD([self.table], lr=1.0)

    def setup(self) -> None:
        """Nothing to prepare."""

    def load(self, commit_dir: str | None, tokenizer: Any) -> None:
        if commit_dir is None:
            return
        self.stage = read_about(commit_dir)["stage"]
        with ShardReader(commit_dir, 1) as reader, torch.no_grad():
            self.table.copy_(reader.own("table", 0))
            restore_generators(reader, 0, self.device)

    def begin_rl(self) -> None:
        self.stage = "rl"

    def forward_backward(
        self, rows: Sequence[Row], loss: StepLoss, *, temperature: float, entropy: EntropyMode
    ) -> dict[str, float]:
        self.optimizer.zero_grad()
        batch = collate(rows, list(range(len(rows))))
        loss(batch, self._chosen(batch, temperature), None, None).backward()  # type: ignore[no-untyped-call]
        return loss.metrics()

    def apply(self, step: OptimizerStep, loss: float) -> tuple[float, float]:
        assert self.table.grad is not None
        rate = learning_rate(step.spec, step.number, step.total)
        self.optimizer.param_groups[0]["lr"] = rate * 1e3
        self.optimizer.step()
        return float(self.table.grad.norm()), rate

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row], *, temperature: float) -> list[list[float]]:
        result: list[list[float]] = [[] for _ in rows]
        batch = collate(rows, list(range(len(rows))))
        batch.put(result, self._chosen(batch, temperature))
        return result

    def token_signals(self, rows: Sequence[Row], *, temperature: float) -> list[TokenSignals]:
        return [TokenSignals() for _ in rows]

    def weights_layout(self) -> list[TensorInfo]:
        return [TensorInfo("table", tuple(self.table.shape), "float32")]

    def gather_weights(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        yield "table", self.table.detach()

    def hf_config(self) -> tuple[Any, str]:
        raise NotImplementedError

    def held(self) -> Iterator[Tensor]:
        yield self.table

    def state_writer(self, directory: str, *, copy: bool) -> Callable[[], list[FileEntry]]:
        about = {"stage": self.stage, "worldSize": 1}
        return state_writer(directory, 0, about, {"table": self.table}, self.device, copy=copy)

    def close(self) -> None:
        """Nothing to leave."""

    def _chosen(self, batch: MicroBatch, temperature: float) -> Tensor:
        logits = self.table[batch.input_ids.flatten()[batch.positions]] / temperature
        return -torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")


def test_a_backend_of_ones_own_trains_commits_and_resumes(
    make_rank: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bigrams = replace(registry.BACKENDS["fsdp"], implementation=f"{__name__}:Bigrams")
    monkeypatch.setitem(registry.BACKENDS, "fsdp", bigrams)
    spec = {"algorithm": {"kl": {"monitor": False, "lossCoef": 0.0}, "entropyCoef": 0.0}}
    rank = make_rank(spec)
    losses = [rank.sft_step(demonstrations(1, 9), step, 10)["loss"] for step in range(10)]
    assert losses == sorted(losses, reverse=True)
    rank.begin_rl()
    batch = samples(3, 7)
    rank.rl_step(batch, 0, 3, rank.compute_logprobs(batch))
    (tmp_path / "commit").mkdir()
    assert [entry.path for entry in rank.save(str(tmp_path / "commit"))][1:] == ["trainer.json"]
    after = rank.rl_step(batch, 1, 3), weights_digest(rank.full_weights())
    resumed = make_rank(spec, commit=str(tmp_path / "commit"))
    assert (resumed.rl_step(batch, 1, 3), weights_digest(resumed.full_weights())) == after
    rank.shutdown()
