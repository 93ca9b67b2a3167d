"""Colocated: an engine that takes its memory again finds it, whatever the trainer has cached meanwhile."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rljob_trainer.training import gpu_memory
from rljob_trainer.workers import weight_sync
from rljob_trainer.workers.weight_sync import IpcSync

from .actors import Told

GIB = 1 << 30


def test_ranks_make_the_room_that_engines_gave_before_these_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    free = iter([[10 * GIB, 12 * GIB], [40 * GIB, 41 * GIB], [9 * GIB, 9 * GIB], [38 * GIB, 39 * GIB]])
    ranks: Any = SimpleNamespace(
        free_gpu_memory=lambda: next(free),
        make_room=lambda wanted: log.append(("room", [size // GIB for size in wanted])) or [],
        weights_plan=lambda size: [],
        finish_export=lambda *after: None,
    )
    sync = IpcSync(ranks, lambda: None)
    for _ in range(2):
        with sync.giving_back():
            pass
    engine = Told(lambda call, *args: log.append(call))
    monkeypatch.setattr(weight_sync, "gather", lambda calls, **options: calls)
    sync.send(1, {0: engine})
    assert log == ["begin_update", ("room", [30, 30]), "wake", "wake", "finish_update"]
    log.clear()
    sync.send(2, {0: engine})  # is awake and has its memory
    assert log == ["begin_update", "wake", "wake", "finish_update"]


def test_ranks_leave_the_gpu_between_the_engines_weights_and_their_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    ranks: Any = SimpleNamespace(
        weights_plan=lambda size: ["bucket"],
        export_bucket=lambda bucket, *after: log.append("export") or ["payload"],
        finish_export=lambda *after: log.append("exported"),
        put_away=lambda *after: log.append("away") or [None],
    )
    sync = IpcSync(ranks, lambda: None, offload=True)
    engine = Told(lambda call, *args: log.append(call))
    monkeypatch.setattr(weight_sync, "gather", lambda calls, **options: calls)
    sync.send(1, {0: engine})
    assert log == ["begin_update", "wake", "export", "load_bucket", "exported", "away", "wake", "finish_update"]


def test_a_cache_is_given_back_only_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    assert not gpu_memory.make_room(20 * GIB)
    assert emptied == []
    assert gpu_memory.make_room(21 * GIB)
    assert emptied == [True]
