"""What an inference engine does for a rollout worker. One folder for each engine; `inference.registry` finds it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from rljob.types import EngineError, Session, Tokenizer


class InferenceEngine(ABC):
    """An engine with a version of the weights and a life; a generate function sees of it `rljob.types.Engine`.

    Which of the methods below `load_weights` it has, its entry in `rljob_api.catalogue.engines` says (`weights`,
    `sleeps`). All methods but `stats` belong to the event loop on which it was built.
    """

    tokenizer: Tokenizer
    max_context_length: int
    """Longest sequence in tokens, prompt included."""
    version: int | None
    """Version of the weights that are served; None: none are, nothing is generated."""
    digest: str | None
    """Digest of the weights that are served."""

    @abstractmethod
    def open(self, seed: int) -> AbstractAsyncContextManager[Session]:
        """A session; see `rljob.types.Engine`."""

    @abstractmethod
    async def load_weights(self, weights: Mapping[str, Any], version: int, digest: str | None = None) -> str:
        """Serve `weights` (all, by Hugging Face names) as `version`; returns their digest. Raises EngineError when it
        is not `digest`."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the engine reports to the driver at the start: `device` (cpu, cuda), `dtype`, `deterministic`,
        `max_context_length`, `tp_size` where it spans GPUs, and what else describes it."""

    @abstractmethod
    def check(self, stuck_seconds: float) -> None:
        """Raises EngineError when the engine is dead, or has not moved for `stuck_seconds` while it had work."""

    @abstractmethod
    def stats(self) -> dict[str, float]:
        """Counters since the start (`generated_tokens`, `prefilled_tokens`, `busy_seconds`), and how many generations
        are under way (`running`). Any thread may ask."""

    @abstractmethod
    def shutdown(self) -> None:
        """End the engine."""

    # -- weights that arrive while it lives on: in buckets, between `begin_update` and `finish_update` -----------------

    async def begin_update(self) -> None:
        """Interrupt what is under way (it goes on afterwards) and serve nothing."""
        raise _only_whole()

    async def load_bucket(self, payloads: Sequence[bytes]) -> None:
        """`ipc`: take over a bucket from memory of the same GPUs, one payload for each of the engine's GPUs."""
        raise _only_whole()

    async def join_group(self, host: str, port: int, first_rank: int, world_size: int, name: str) -> None:
        """`nccl`: join the group whose rank 0 broadcasts weights."""
        raise _only_whole()

    async def receive_bucket(
        self, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]], group: str
    ) -> None:
        """`nccl`: take over a bucket that rank 0 of `group` broadcasts."""
        raise _only_whole()

    async def load_folder(self, folder: str) -> None:
        """`disk`: take over a folder of safetensors files."""
        raise _only_whole()

    async def finish_update(self, version: int, digest: str, table: Mapping[str, Sequence[Any]]) -> str:
        """Check what is served against the sender's `table` of entries, then serve it as `version`."""
        raise _only_whole()

    # -- GPUs that it shares with ranks --------------------------------------------------------------------------------

    async def sleep(self) -> None:
        """Give GPU memory back; what is served is lost, and an update has to follow `wake`."""
        raise EngineError("it keeps its memory")

    async def wake(self, tags: Sequence[str]) -> None:
        """Take memory again: `weights` before an update, `kv_cache` and `cuda_graph` after it."""
        raise EngineError("it keeps its memory")


def _only_whole() -> EngineError:
    return EngineError("it takes weights only as a whole")
