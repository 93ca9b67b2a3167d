"""Ways from ranks to engines: what is called of whom, and when, with actors that run at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rljob_trainer.training.weight_export import WeightExporter
from rljob_trainer.weights.buckets import Bucket
from rljob_trainer.weights.fingerprint import entries
from rljob_trainer.workers import weight_sync
from rljob_trainer.workers.weight_sync import DiskSync, NcclSync

from trainer.tests.weights.source import Source

from .actors import Method, Told


class Ranks:
    """The trainer's ranks as a weight sync sees them."""

    def __init__(self, log: list[Any]) -> None:
        draw = torch.Generator().manual_seed(1)
        tensors = {name: torch.randn(4, 3, generator=draw) for name in ("a", "b", "c")}
        self.log, self.weights = log, Source(tensors)
        self._exporter = WeightExporter(self.weights, 0)

    def weights_plan(self, size: int) -> list[Bucket]:
        return self._exporter.plan(size)

    def open_weights_group(self) -> tuple[str, int]:
        return "rank-0", 29500

    def join_weights_group(self, port: int, size: int, name: str) -> None:
        self.log.append(("rank 0 joins", port, size, name))

    def broadcast_bucket(self, bucket: Bucket, group: str) -> list[None]:
        self.log.append(("broadcast", bucket.names, group))
        return [None]

    def write_bucket(self, bucket: Bucket, file: str) -> list[None]:
        self._exporter.write(bucket, file)
        return [None]

    def finish_export(self, *after: Any) -> Any:
        return self._exporter.finish()


class Engine(Told):
    """An engine's actor that notes what it is told."""

    def __init__(self, name: str, log: list[Any]) -> None:
        super().__init__(lambda call, *args: log.append((name, call, *args)))
        self.loaded = dict[str, torch.Tensor]()

    @property
    def load_folder(self) -> Method:
        def load(folder: str) -> None:
            from safetensors.torch import load_file

            files = sorted(Path(folder).glob("*.safetensors"))
            self.loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}

        return Method(load)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sync, "gather", lambda calls, **options: calls)


def test_by_nccl_every_gpu_of_every_engine_is_a_member_and_gets_every_bucket() -> None:
    log: list[Any] = []
    engines = {0: Engine("engine 0", log), 2: Engine("engine 2", log)}
    sync = NcclSync(Ranks(log), lambda: None, gpus_per_engine=2, bucket_bytes=96)  # type: ignore[arg-type]
    sync.send(7, engines)
    group = "rljob-weights-0"
    assert log[:3] == [
        ("rank 0 joins", 29500, 5, group),
        ("engine 0", "join_group", "rank-0", 29500, 1, 5, group),
        ("engine 2", "join_group", "rank-0", 29500, 3, 5, group),
    ]
    rest = [entry[:2] for entry in log[3:]]
    both = ("engine 0", "engine 2")
    assert rest == [
        *((name, "begin_update") for name in both),
        ("broadcast", ("a", "b")),
        *((name, "receive_bucket") for name in both),
        ("broadcast", ("c",)),
        *((name, "receive_bucket") for name in both),
        *((name, "finish_update") for name in both),
    ]
    received = next(entry for entry in log if entry[1] == "receive_bucket")
    assert received[2:6] == (["a", "b"], ["float32", "float32"], [[4, 3], [4, 3]], group)
    assert log[-1][2] == 7


def test_a_group_is_formed_anew_only_when_its_members_changed() -> None:
    log: list[Any] = []
    engines = {0: Engine("engine 0", log), 1: Engine("engine 1", log)}
    sync = NcclSync(Ranks(log), lambda: None, gpus_per_engine=1)  # type: ignore[arg-type]

    def joined() -> list[str]:
        found = [entry[-1] for entry in log if "joins" in entry[0]]
        log.clear()
        return found

    sync.send(1, engines)
    sync.send(2, engines)
    assert joined() == ["rljob-weights-0"]
    engines[1] = Engine("engine 1", log)  # replaced
    sync.send(2, engines)
    assert joined() == ["rljob-weights-1"]


def test_by_disk_engines_load_what_the_ranks_have_and_old_versions_go(tmp_path: Path) -> None:
    log: list[Any] = []
    ranks, engine = Ranks(log), Engine("engine 0", log)
    sync = DiskSync(ranks, tmp_path / "weights", lambda: None, memory=False, bucket_bytes=96)  # type: ignore[arg-type]
    for version in (1, 2):
        ranks.weights.tensors["b"] = torch.full((4, 3), float(version))
        sync.send(version, {0: engine})
        assert {name: tensor.tolist() for name, tensor in engine.loaded.items()} == {
            name: tensor.tolist() for name, tensor in ranks.weights.tensors.items()
        }
        told = log[-1]
        assert told[:3] == ("engine 0", "finish_update", version)
        assert told[3][1] == entries(engine.loaded)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["000002"]
