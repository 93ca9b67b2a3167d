"""What a rollout worker asks of an engine, whichever it is, beside `rollout.types.Engine`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rljob.types import Engine, EngineError


class ServingEngine(Engine, Protocol):
    """An engine with a version of the weights and a life."""

    version: int | None
    """Version of the weights that are served; None: none are, nothing is generated."""
    digest: str | None

    def facts(self) -> dict[str, Any]:
        """What `start` tells of it."""
        ...

    async def load_weights(self, weights: Mapping[str, Any], version: int, digest: str | None = None) -> str:
        """Serve `weights`; returns their digest. Raises EngineError when it is not `digest`."""
        ...

    def check(self, stuck_seconds: float) -> None:
        """Raises EngineError when the engine is dead, or has not moved for `stuck_seconds` while it had work."""
        ...

    def stats(self) -> dict[str, float]:
        """Counters since the start, and what is under way."""
        ...

    def shutdown(self) -> None:
        """End the engine."""
        ...


class Receiver(Protocol):
    """An engine that takes weights over while it lives on: in buckets, between `begin_update` and `finish_update`."""

    async def begin_update(self) -> None:
        """Interrupt what is under way (it goes on afterwards) and serve nothing."""
        ...

    async def load_bucket(self, payloads: Sequence[bytes]) -> None:
        """Take over a bucket from memory of the same GPUs: one payload for each of the engine's GPUs."""
        ...

    async def join_group(self, host: str, port: int, first_rank: int, world_size: int, name: str) -> None:
        """Join the NCCL group whose rank 0 broadcasts weights."""
        ...

    async def receive_bucket(
        self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], group: str
    ) -> None:
        """Take over a bucket that rank 0 of `group` broadcasts."""
        ...

    async def load_folder(self, folder: str) -> None:
        """Take over a folder of safetensors files."""
        ...

    async def finish_update(self, version: int, digest: str, table: Mapping[str, Sequence[Any]]) -> str:
        """Check what is served against the sender's `table` of entries, then serve it as `version`."""
        ...

    async def sleep(self) -> None:
        """Give GPU memory back; what is served is lost, and an update has to follow `wake`."""
        ...

    async def wake(self, tags: Sequence[str]) -> None:
        """Take memory again: `weights` before an update, `kv_cache` and `cuda_graph` after it."""
        ...


def receiver(engine: object, name: str) -> Receiver:
    """`engine` as a Receiver. Raises EngineError when it takes whole weights alone."""
    if not hasattr(engine, "begin_update"):
        raise EngineError(f"{name} takes weights only as a whole")
    return engine  # type: ignore[return-value]
