"""How new weights reach the engines: one interface, five ways.

- Object store: whole arrays, for engines that take nothing else; a replaced engine gets the same arrays again.
- CUDA IPC: engines on the ranks' own GPUs read the buckets where they lie (placement `colocated`).
- NCCL: rank 0 broadcasts buckets to the engines' GPUs (`disaggregated`, `async`).
- None: engines of a job without a trainer load `spec.model` themselves.
- Disk: safetensors files in the incarnation's directory (`rollout.weightSync: disk`); the reference and the fallback.

Every way ends alike: the engine computes the digest over what it serves, and serves when it is the sender's.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import ray
from rljob_api.catalogue.engines import ENGINES, Transport
from rljob_api.rules.arithmetic import engine_gpus, engines_sleep
from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.weights import weights_digest
from rljob_trainer.weights.buckets import BUCKET_BYTES, Bucket
from rljob_trainer.workers.rank_group import RankGroup
from rljob_trainer.workers.waiting import WorkerFailedError, gather

UPDATE_SECONDS = 600.0
Engines = Mapping[int, Any]
"""Engine actors by their number."""
Tick = Callable[[], None]


class WeightSync(Protocol):
    """One way of bringing the ranks' weights to engines."""

    keeps_version: bool
    """Whether a version can be sent again once the ranks' weights have changed."""

    def prepare(self, version: int) -> None:
        """Take up the ranks' weights as `version`, where they are kept on the way."""
        ...

    def send(self, version: int, engines: Engines) -> None:
        """Make `engines` serve `version`. Raises WorkerError naming the rank or the engine that failed."""
        ...

    def giving_back(self) -> AbstractContextManager[None]:
        """Around engines' giving their memory back: what they give is what they want again, for the next `send`."""
        ...


def engine_name(index: int) -> str:
    """How errors name an engine."""
    return f"engine {index}"


def make_weight_sync(spec: RLJobSpec, ranks: RankGroup | None, directory: Path, tick: Tick) -> WeightSync:
    """The way that fits engine and placement. `directory`: the incarnation's own. `ranks`: None where nothing is
    trained."""
    if ranks is None:
        return ModelSync(tick)
    gpus, away = engine_gpus(spec), spec.placement.offload_trainer
    match transport(spec):
        case "arrays":
            return ObjectStoreSync(ranks, tick)
        case "disk":
            return DiskSync(ranks, directory / "weights", tick, memory=engines_sleep(spec), offload=away)
        case "ipc":
            return IpcSync(ranks, tick, gpus_per_engine=gpus, offload=away)
        case "nccl":
            return NcclSync(ranks, tick, gpus_per_engine=gpus)


def transport(spec: RLJobSpec) -> Transport:
    """The way of weights from ranks to engines: what `rollout.weightSync` and the placement ask for, where the engine
    takes it; else what it does take."""
    fast: Transport = "ipc" if spec.placement.type == "colocated" else "nccl"
    wanted: Transport = "disk" if spec.rollout.weight_sync == "disk" else fast
    ways: tuple[Transport, ...] = (wanted, "disk", "arrays")
    return next(way for way in ways if way in ENGINES[spec.rollout.engine].weights)


class ObjectStoreSync:
    """Whole arrays through Ray's object store."""

    keeps_version = True

    def __init__(self, ranks: RankGroup, tick: Tick) -> None:
        self._ranks, self._tick = ranks, tick
        self._digest = ""
        self._weights: Any = None

    def prepare(self, version: int) -> None:
        weights = self._ranks.full_weights()
        self._digest, self._weights = weights_digest(weights), ray.put(weights)

    def send(self, version: int, engines: Engines) -> None:
        calls = {
            engine_name(index): engine.update_weights.remote(version, self._digest, self._weights)
            for index, engine in engines.items()
        }
        served = gather(calls, limit=UPDATE_SECONDS, doing=_doing(version), tick=self._tick)
        for name, digest in served.items():
            if digest != self._digest:
                raise WorkerFailedError(name, f"{name} serves weights of another digest than version {version}")

    def giving_back(self) -> AbstractContextManager[None]:
        return nullcontext()


class ModelSync:
    """No trainer: every engine loads `spec.model` itself."""

    keeps_version = True

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self.digest: str | None = None
        """Of what is served; the same on all engines."""

    def prepare(self, version: int) -> None:
        """Nothing is on the way."""

    def send(self, version: int, engines: Engines) -> None:
        calls = {engine_name(index): engine.load_model.remote() for index, engine in engines.items()}
        served = gather(calls, limit=UPDATE_SECONDS, doing="loading spec.model", tick=self._tick)
        for name, digest in served.items():
            self.digest = self.digest or digest
            if digest != self.digest:
                raise WorkerFailedError(
                    name, f"{name} has loaded other weights from spec.model than the engines before"
                )

    def giving_back(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Bucketed:
    """What the bucketed ways share."""

    keeps_version = False

    def __init__(
        self, ranks: RankGroup, tick: Tick, *, memory: bool, offload: bool = False, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        """memory: engines wake for what is sent. offload: ranks leave the GPU before engines take the rest of it."""
        self._ranks, self._tick, self._memory, self._bucket_bytes = ranks, tick, memory, bucket_bytes
        self._offload = offload
        self._plan: list[Bucket] | None = None
        self._given: list[int] = []
        """Bytes of each rank's GPU that its engine has given back, the most so far."""
        self._asleep = False

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        before = self._ranks.free_gpu_memory() if self._memory else []
        yield
        after = self._ranks.free_gpu_memory() if self._memory else []
        given = [now - then for then, now in zip(before, after, strict=True)]
        self._given = [max(pair) for pair in zip(given, self._given or [0] * len(given), strict=True)]
        self._asleep = True

    def prepare(self, version: int) -> None:
        """Nothing is kept: the ranks' weights are the ones to send until the next step."""

    def send(self, version: int, engines: Engines) -> None:
        """The whole exchange is submitted at once, each call waiting for those it builds on; errors are then looked
        for in the order of the calls, so that the first cause is named."""
        if self._plan is None:
            self._plan = self._ranks.weights_plan(self._bucket_bytes)
        self._open(engines)
        calls: list[tuple[str, Any]] = []
        self._all(calls, engines, lambda engine: engine.begin_update.remote())
        if self._memory:
            room = self._ranks.make_room(self._given) if self._asleep else []
            self._asleep = False
            calls += [(f"rank {rank}", ref) for rank, ref in enumerate(room)]
            self._all(calls, engines, lambda engine: engine.wake.remote(["weights"], *room))
        self._settle(calls, version)
        last = self._transfer(calls, self._plan, version, engines)
        exported = self._ranks.finish_export(*last.values())
        calls.append(("rank 0", exported))
        if self._memory:
            away = self._ranks.put_away(exported, *last.values()) if self._offload else []
            calls += [(f"rank {rank}", ref) for rank, ref in enumerate(away)]
            for index, engine in engines.items():
                last[index] = engine.wake.remote(["kv_cache", "cuda_graph"], last[index], *away)
                calls.append((engine_name(index), last[index]))
        for index, engine in engines.items():
            calls.append((engine_name(index), engine.finish_update.remote(version, exported, last[index])))
        self._settle(calls, version)

    def _open(self, engines: Engines) -> None:
        """Whatever has to be there before buckets travel."""

    def _transfer(
        self, calls: list[tuple[str, Any]], plan: list[Bucket], version: int, engines: Engines
    ) -> dict[int, Any]:
        """Submit the buckets; the last call of each engine."""
        raise NotImplementedError

    def _all(self, calls: list[tuple[str, Any]], engines: Engines, call: Callable[[Any], Any]) -> None:
        calls += [(engine_name(index), call(engine)) for index, engine in engines.items()]

    def _settle(self, calls: list[tuple[str, Any]], version: int) -> None:
        for name, ref in calls:
            gather({name: ref}, limit=UPDATE_SECONDS, doing=_doing(version), tick=self._tick)
        calls.clear()


class IpcSync(_Bucketed):
    """Each of an engine's GPUs reads from the rank with which it is shared."""

    def __init__(
        self,
        ranks: RankGroup,
        tick: Tick,
        *,
        gpus_per_engine: int = 1,
        offload: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        super().__init__(ranks, tick, memory=True, offload=offload, bucket_bytes=bucket_bytes)
        self._gpus = gpus_per_engine

    def _transfer(
        self, calls: list[tuple[str, Any]], plan: list[Bucket], version: int, engines: Engines
    ) -> dict[int, Any]:
        loads: dict[int, Any] = dict.fromkeys(engines)
        for bucket in plan:
            # A rank keeps two buckets: the one being read and the one being filled.
            payloads = self._ranks.export_bucket(bucket, *(ref for ref in loads.values() if ref is not None))
            calls += [(f"rank {rank}", ref) for rank, ref in enumerate(payloads)]
            for index, engine in engines.items():
                own = payloads[index * self._gpus : (index + 1) * self._gpus]
                loads[index] = engine.load_bucket.remote(*own, loads[index])
                calls.append((engine_name(index), loads[index]))
        return loads


class NcclSync(_Bucketed):
    """Rank 0 broadcasts to all engines' GPUs, in a group that is made anew when an engine was replaced."""

    def __init__(self, ranks: RankGroup, tick: Tick, *, gpus_per_engine: int, bucket_bytes: int = BUCKET_BYTES) -> None:
        super().__init__(ranks, tick, memory=False, bucket_bytes=bucket_bytes)
        self._gpus = gpus_per_engine
        self._members: tuple[Any, ...] = ()
        self._group = ""
        self._numbers = itertools.count()

    def _open(self, engines: Engines) -> None:
        members = tuple(engines.values())
        if members == self._members:
            return
        self._members = ()
        self._group = f"rljob-weights-{next(self._numbers)}"
        host, port = self._ranks.open_weights_group()
        size = 1 + self._gpus * len(engines)
        calls = {"rank 0": self._ranks.join_weights_group(port, size, self._group)}
        for place, (index, engine) in enumerate(engines.items()):
            first = 1 + place * self._gpus
            calls[engine_name(index)] = engine.join_group.remote(host, port, first, size, self._group)
        gather(calls, limit=UPDATE_SECONDS, doing="forming the group of weights", tick=self._tick)
        self._members = members

    def _transfer(
        self, calls: list[tuple[str, Any]], plan: list[Bucket], version: int, engines: Engines
    ) -> dict[int, Any]:
        loads: dict[int, Any] = dict.fromkeys(engines)
        for bucket in plan:
            sent = self._ranks.broadcast_bucket(bucket, self._group)
            names = [tensor.name for tensor in bucket.tensors]
            dtypes = [tensor.dtype for tensor in bucket.tensors]
            shapes = [list(tensor.shape) for tensor in bucket.tensors]
            for index, engine in engines.items():
                loads[index] = engine.receive_bucket.remote(names, dtypes, shapes, self._group, loads[index])
                calls.append((engine_name(index), loads[index]))
            calls += [(f"rank {rank}", ref) for rank, ref in enumerate(sent)]
        return loads


class DiskSync(_Bucketed):
    """Files in a folder of the job's storage, one per bucket; the last version's are removed."""

    def __init__(
        self,
        ranks: RankGroup,
        folder: Path,
        tick: Tick,
        *,
        memory: bool,
        offload: bool = False,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        super().__init__(ranks, tick, memory=memory, offload=offload, bucket_bytes=bucket_bytes)
        self._folder = folder

    def _transfer(
        self, calls: list[tuple[str, Any]], plan: list[Bucket], version: int, engines: Engines
    ) -> dict[int, Any]:
        shutil.rmtree(self._folder, ignore_errors=True)
        folder = self._folder / f"{version:06d}"
        written: list[tuple[str, Any]] = []
        for number, bucket in enumerate(plan):
            file = folder / f"model-{number + 1:05d}-of-{len(plan):05d}.safetensors"
            written += [(f"rank {rank}", ref) for rank, ref in enumerate(self._ranks.write_bucket(bucket, str(file)))]
        self._settle(written, version)
        loads = {index: engine.load_folder.remote(str(folder)) for index, engine in engines.items()}
        calls += [(engine_name(index), ref) for index, ref in loads.items()]
        return loads


def _doing(version: int) -> str:
    return f"taking over weights of version {version}"
