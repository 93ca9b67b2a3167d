"""One training rank as the driver sees it. A Ray actor by `ray.remote(TrainerRank)`, or a plain object."""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rljob.types import TokenSignals, TrainSample
from rljob_api.manifest.errors import UserError
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer import logs
from rljob_trainer.checkpoint.background import ShardWriter, mark_written
from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.watch.pulse import Pulse

if TYPE_CHECKING:
    from rljob_trainer.training.interface import BackendRank
    from rljob_trainer.weights.buckets import Bucket
    from rljob_trainer.weights.fingerprint import Entry

logger = logging.getLogger(__name__)


def _backend(name: str) -> "Callable[[RLJob, str, int, int], BackendRank]":
    """The class of a backend's ranks. Imports that backend alone."""
    if name == "fsdp":
        from rljob_trainer.training.fsdp.backend import FsdpBackend

        return FsdpBackend
    try:
        import megatron.core  # noqa: F401
    except ImportError as error:
        raise UserError(
            "spec.trainer.backend: megatron-core is not installed here",
            hint="use the trainer image (or `pip install rljob[trainer,megatron]`), or backend fsdp",
        ) from error
    from rljob_trainer.training.megatron.backend import MegatronBackend

    return MegatronBackend


def gpu_memory() -> dict[str, float]:
    """Bytes of GPU memory that this process's tensors hold, and held at most; nothing without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "gpu_memory": float(torch.cuda.memory_allocated()),
        "gpu_memory_peak": float(torch.cuda.max_memory_allocated()),
    }


def free_gpu_memory() -> int:
    """Bytes that are free on this process's GPU, whoever uses the rest; 0 without a GPU."""
    import torch

    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 0


def make_room(wanted: int) -> bool:
    """Give the GPU back what PyTorch keeps of tensors that are gone, unless `wanted` bytes are free anyway: taking it
    again costs time. Returns whether it was given back."""
    import torch

    if not torch.cuda.is_available() or free_gpu_memory() >= wanted:
        return False
    torch.cuda.empty_cache()
    return True


def _device(on_gpu: bool) -> str:
    """What this process trains on, as its log names it."""
    import torch

    return torch.cuda.get_device_name() if on_gpu and torch.cuda.is_available() else "the CPU"


class TrainerRank:
    """Chooses the backend and passes calls on. Importing this module imports neither Ray, torch nor a backend.

    Order of calls, on all ranks at once: `rendezvous` (rank 0 alone), `setup`, `load`, then steps. Every call but
    `health` may be collective: a rank that is left out, or dies, makes the others fail within
    `trainer.rankTimeoutSeconds`.
    """

    def __init__(
        self, job: dict[str, Any], job_dir: str, rank: int, world_size: int, pulses: str | None = None
    ) -> None:
        """`pulses`: folder for this process's signs of life, if any are wanted."""
        self._pulse = None if pulses is None else Pulse(pulses, f"rank {rank}")
        parsed = RLJob.model_validate(job)
        from rljob_trainer.metrics.exporter import ProcessMetrics
        from rljob_trainer.training.gpu_memory import HostStash
        from rljob_trainer.weights.export import WeightExporter

        if logs.on_cluster():
            logs.configure("rank", rank)
        self.spec = parsed.spec
        self._exported = ProcessMetrics(parsed.metadata.name, "rank", rank)
        self._metrics_port, self._job_dir = parsed.spec.tracking.metrics_port, job_dir
        self._world_size = world_size
        self._rank: BackendRank = _backend(parsed.spec.trainer.backend)(parsed, job_dir, rank, world_size)
        self._exporter = WeightExporter(self._rank, rank)
        self._stash = HostStash(self._rank.held)
        self._writer = ShardWriter(rank)
        self._limit = float(parsed.spec.trainer.rank_timeout_seconds)

    def rendezvous(self) -> tuple[str, int]:
        """On rank 0: where the ranks meet (host, port). The port is held from here on."""
        return self._rank.open_rendezvous()

    def setup(self, master_addr: str, port: int) -> None:
        """Serve /metrics and join the other ranks; returns when all are there."""
        from rljob_trainer.metrics.exporter import serve_worker

        serve_worker(self._exported.registry, self._metrics_port, self._job_dir)
        self._rank.setup(master_addr, port)

    def load(self, commit_dir: str | None) -> str:
        """Take up a commit, or start from `spec.model`. Returns the stage of the state: `sft` (before reinforcement
        learning) or `rl`."""
        start = time.monotonic()
        with self._exported.call("load"):
            stage = self._rank.load(commit_dir)
        logger.info(
            "rank %d of %d has loaded %s in %.1f s: backend %s, stage %s, on %s of %s",
            self._rank.rank,
            self._world_size,
            "the weights that the job starts from" if commit_dir is None else f"the commit {commit_dir}",
            time.monotonic() - start,
            self.spec.trainer.backend,
            stage if self.spec.sft is not None else "rl",  # without demonstrations `begin_rl` follows at once
            _device(on_gpu=self.spec.trainer.gpus_per_replica > 0),
            socket.gethostname(),
        )
        return stage

    def sft_step(self, rows: Sequence[Any], lr_step: int, total_steps: int) -> dict[str, float]:
        """One step on this rank's share of the demonstrations (`input_ids`, `loss_mask`). `lr_step` counts from 0
        within the stage of `total_steps`. Metrics: loss, grad_norm, lr, tokens, rows."""
        logs.at_step(lr_step)
        with self._exported.call("sft_step"):
            metrics = self._here.sft_step(rows, lr_step=lr_step, total_steps=total_steps)
        self._exported.set(metrics | gpu_memory())
        return metrics

    def begin_rl(self) -> None:
        """Freeze the reference, start the optimizer of reinforcement learning. Nothing when resumed in that stage."""
        self._here.begin_rl()

    def compute_logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probabilities under the weights as they are, one per response token, 0 where not trained."""
        with self._exported.call("compute_logprobs"):
            return self._here.compute_logprobs(samples)

    def token_signals(self, samples: Sequence[TrainSample]) -> list[TokenSignals]:
        """Values and KL of the trained tokens, for advantages that are made of more than rewards."""
        with self._exported.call("token_signals"):
            return self._here.token_signals(samples)

    def rl_step(
        self,
        samples: Sequence[TrainSample],
        lr_step: int,
        total_steps: int,
        old_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on this rank's share of the global batch; metrics are global, the same on all ranks."""
        logs.at_step(lr_step)
        with self._exported.call("rl_step"):
            metrics = self._here.rl_step(samples, lr_step=lr_step, total_steps=total_steps, old_logprobs=old_logprobs)
        self._exported.set(metrics | gpu_memory())
        return metrics

    def full_weights(self) -> dict[str, Any]:
        """All weights as numpy arrays under Hugging Face names on rank 0, {} on the others (which must call it too)."""
        return self._here.full_weights()

    def weights_plan(self, max_bytes: int) -> "list[Bucket]":
        """The buckets in which the weights travel to the engines."""
        return self._exporter.plan(max_bytes)

    def export_bucket(self, bucket: "Bucket", *after: None) -> bytes:
        """A bucket in this GPU's memory, for an engine on the same GPU. Collective. `after`: calls to wait for."""
        self._stash.take()
        return self._exporter.share(bucket)

    def visible_devices(self) -> str:
        """This rank's GPU as CUDA_VISIBLE_DEVICES names it; empty on CPU."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def free_gpu_memory(self) -> int:
        """Bytes that are free on this rank's GPU."""
        return free_gpu_memory()

    def make_room(self, wanted: int) -> bool:
        """Before an engine takes its memory on this GPU again; see the function."""
        return make_room(wanted)

    def put_away(self, *after: None) -> None:
        """Move everything that is kept from step to step to host memory (`placement.offloadTrainer`); the next call
        that needs it brings it back. `after`: calls to wait for."""
        self._stash.put()
        make_room(sys.maxsize)

    @property
    def _here(self) -> "BackendRank":
        """The backend's rank, with its tensors in place."""
        self._stash.take()
        return self._rank

    def open_weights_group(self) -> tuple[str, int]:
        """On rank 0: where the engines meet it."""
        return self._exporter.address()

    def join_weights_group(self, port: int, world_size: int, name: str) -> None:
        """On rank 0: make the NCCL group of weights with the engines; returns when all are there."""
        self._exporter.join_group(port, world_size, name)

    def broadcast_bucket(self, bucket: "Bucket", group: str) -> None:
        """Broadcast a bucket from rank 0 to the engines of `group`. Collective."""
        self._exporter.broadcast(bucket, group)

    def write_bucket(self, bucket: "Bucket", file: str) -> None:
        """Write a bucket to a safetensors file (rank 0). Collective."""
        self._stash.take()
        self._exporter.write(bucket, file)

    def finish_export(self, *after: None) -> "tuple[str, dict[str, Entry]]":
        """Digest and table of what was exported since the last call; `after`: calls to wait for."""
        return self._exporter.finish()

    def save(self, directory: str) -> list[FileEntry]:
        """Write this rank's state into the folder of a `CommitWriter`; entries for `CommitWriter.add`."""
        with self._exported.call("save"):
            return self._here.save(directory)

    def begin_save(self, directory: str) -> None:
        """Copy this rank's state, write it in the background into the folder of a `CommitWriter`, then leave a mark
        there. A backend that cannot copy its state writes it at once."""
        snapshot = getattr(self._here, "snapshot", None)
        if snapshot is not None:
            self._writer.start(directory, snapshot(directory), self._limit)
        else:
            mark_written(directory, self._rank.rank, self._here.save(directory))

    def export_hf(self, directory: str) -> None:
        """Write a Hugging Face folder (rank 0; the others must call it too)."""
        self._here.export_hf(directory)

    def health(self) -> dict[str, Any]:
        """That this rank answers, and where it stands."""
        return {"rank": self._rank.rank, "stage": self._rank.stage}

    def shutdown(self) -> None:
        """Leave the other ranks, once what is written in the background is."""
        if self._pulse is not None:
            self._pulse.close()
        self._writer.wait(self._limit)
        self._rank.close()
