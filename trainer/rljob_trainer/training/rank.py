"""One training rank as the driver sees it. A Ray actor by `ray.remote(TrainerRank)`, or a plain object."""

import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rljob.types import TokenSignals, TrainSample
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer import logs
from rljob_trainer.checkpoint.background import ShardWriter
from rljob_trainer.checkpoint.files import FileEntry
from rljob_trainer.metrics.exporter import ProcessMetrics, serve_worker
from rljob_trainer.models import load_tokenizer
from rljob_trainer.training import process_group, steps
from rljob_trainer.training.gpu_memory import HostStash, free_gpu_memory, gpu_memory, make_room
from rljob_trainer.training.interface import Backend, Stage
from rljob_trainer.training.registry import backend_class
from rljob_trainer.training.weight_export import WeightExporter
from rljob_trainer.watch.pulse import Pulse
from rljob_trainer.weights.arrays import Array, to_array
from rljob_trainer.weights.buckets import Bucket
from rljob_trainer.weights.fingerprint import Entry

logger = logging.getLogger(__name__)


class TrainerRank:
    """One of the processes that train: what all backends have in common. `trainer.backend` names the rank's own.

    Order of calls, on all ranks at once: `rendezvous` (rank 0 alone), `setup`, `load`, then steps. Every call may be
    collective: a rank that is left out, or dies, makes the others fail within `trainer.rankTimeoutSeconds`.
    """

    def __init__(
        self, job: dict[str, Any], job_dir: str, rank: int, world_size: int, pulses: str | None = None
    ) -> None:
        """`pulses`: folder for this process's signs of life, if any are wanted. Raises UserError for a job that the
        backend cannot train."""
        self._pulse = None if pulses is None else Pulse(pulses, f"rank {rank}")
        parsed = RLJob.model_validate(job)
        if logs.on_cluster():
            logs.configure("rank", rank)
        self.spec, self._job_dir, self._rank, self._world_size = parsed.spec, job_dir, rank, world_size
        self._limit = float(parsed.spec.trainer.rank_timeout_seconds)
        self._exported = ProcessMetrics(parsed.metadata.name, "rank", rank)
        self._rendezvous: process_group.Rendezvous | None = None
        self._tokenizer: Any = None
        self.backend: Backend = backend_class(parsed.spec.trainer.backend)(parsed, job_dir, rank, world_size)
        self._exporter = WeightExporter(self.backend, rank)
        self._stash = HostStash(self.backend.held)
        self._writer = ShardWriter(rank)

    # -- life ---------------------------------------------------------------------------------------------------

    def rendezvous(self) -> tuple[str, int]:
        """On rank 0: open the store where the ranks meet; its host and port. The port is held from here on."""
        host = process_group.host_address()
        self._rendezvous = process_group.Rendezvous(host, self._world_size, self._limit)
        return host, self._rendezvous.port

    def setup(self, host: str, port: int) -> None:
        """Serve /metrics, join the other ranks (returns when all are there) and prepare the backend."""
        serve_worker(self._exported.registry, self.spec.tracking.metrics_port, self._job_dir)
        torch.set_num_threads(self.spec.trainer.threads_per_rank)
        device = self.backend.device
        if device.type == "cuda":
            torch.cuda.set_device(0)  # Ray shows a rank its own GPU alone.
        if self.backend.uses_process_group:
            if self._world_size == 1 and self._rendezvous is None:
                host, port = self.rendezvous()
            process_group.join(
                host, port, self._rank, self._world_size, self._limit, device=device, rendezvous=self._rendezvous
            )
        self.backend.setup()

    def load(self, commit_dir: str | None) -> Stage:
        """Take up a commit, or start from `spec.model`. Returns the stage of the state: `sft` (before reinforcement
        learning) or `rl`."""
        start = time.monotonic()
        with self._exported.call("load"):
            self._tokenizer = self._tokenizer or load_tokenizer(self.spec.model, self._job_dir)
            self.backend.load(commit_dir, self._tokenizer)
        stage = self.backend.stage
        logger.info(
            "rank %d of %d has loaded %s in %.1f s: backend %s, stage %s, on %s of %s",
            self._rank,
            self._world_size,
            "the weights that the job starts from" if commit_dir is None else f"the commit {commit_dir}",
            time.monotonic() - start,
            self.spec.trainer.backend,
            stage if self.spec.sft is not None else "rl",  # without demonstrations `begin_rl` follows at once
            torch.cuda.get_device_name() if self.backend.device.type == "cuda" else "the CPU",
            socket.gethostname(),
        )
        return stage

    def visible_devices(self) -> str:
        """This rank's GPU as CUDA_VISIBLE_DEVICES names it; empty on CPU."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def shutdown(self) -> None:
        """Leave the other ranks, once what is written in the background is."""
        if self._pulse is not None:
            self._pulse.close()
        self._writer.wait(self._limit)
        self.backend.close()
        if self.backend.uses_process_group:
            process_group.leave()
        # What holds the process group must be gone before the interpreter is: a thread of it that wants Python's lock
        # then aborts the process.
        gc.collect()

    # -- steps --------------------------------------------------------------------------------------------------

    def begin_rl(self) -> None:
        """Freeze the reference, start the optimizer of reinforcement learning. Nothing when resumed in that stage."""
        backend = self._on_device()
        if backend.stage != "rl":
            backend.begin_rl()

    def sft_step(self, rows: Sequence[steps.Demonstration], lr_step: int, total_steps: int) -> dict[str, float]:
        """See `steps.sft_step`. `lr_step` counts from 0 within the stage of `total_steps`."""
        logs.at_step(lr_step)
        with self._exported.call("sft_step"):
            metrics = steps.sft_step(self._on_device(), self.spec, rows, lr_step, total_steps)
        self._exported.set(metrics | gpu_memory())
        return metrics

    def rl_step(
        self,
        samples: Sequence[TrainSample],
        lr_step: int,
        total_steps: int,
        old_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """See `steps.rl_step`. `lr_step` counts from 0 within the stage of `total_steps`."""
        logs.at_step(lr_step)
        with self._exported.call("rl_step"):
            metrics = steps.rl_step(self._on_device(), self.spec, samples, lr_step, total_steps, old_logprobs)
        self._exported.set(metrics | gpu_memory())
        return metrics

    def compute_logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """See `steps.compute_logprobs`."""
        with self._exported.call("compute_logprobs"):
            return steps.compute_logprobs(self._on_device(), self.spec, samples)

    def token_signals(self, samples: Sequence[TrainSample]) -> list[TokenSignals]:
        """See `steps.token_signals`."""
        with self._exported.call("token_signals"):
            return steps.token_signals(self._on_device(), self.spec, samples)

    # -- state --------------------------------------------------------------------------------------------------

    def save(self, directory: str) -> list[FileEntry]:
        """Write this rank's state into the folder of a `CommitWriter`; entries for `CommitWriter.add`. Collective."""
        with self._exported.call("save"):
            entries = self._on_device().state_writer(directory, copy=False)()
            process_group.barrier()
        return entries

    def begin_save(self, directory: str) -> None:
        """Copy this rank's state, write it in the background into the folder of a `CommitWriter`, then leave a mark
        there."""
        self._writer.start(directory, self._on_device().state_writer(directory, copy=True), self._limit)

    def export_hf(self, directory: str) -> None:
        """Write the model and its tokenizer as a Hugging Face folder (rank 0). Collective."""
        from rljob_trainer.models.hf_export import save_hf

        backend = self._on_device()
        weights = {name: value.cpu() for name, value in backend.gather_weights() if self._rank == 0}
        if self._rank == 0:
            save_hf(*backend.hf_config(), weights, self._tokenizer, Path(directory))
        process_group.barrier()

    # -- weights for the engines --------------------------------------------------------------------------------

    def full_weights(self) -> dict[str, Array]:
        """All weights in `model.dtype` under their Hugging Face names (tied ones once), on rank 0; {} elsewhere.
        Collective. The arrays are copies; bfloat16 is carried as uint16 (see `weights.arrays`)."""
        return {name: to_array(value) for name, value in self._on_device().gather_weights() if self._rank == 0}

    def weights_plan(self, max_bytes: int) -> list[Bucket]:
        """The buckets in which the weights travel to the engines."""
        return self._exporter.plan(max_bytes)

    def export_bucket(self, bucket: Bucket, *after: None) -> bytes:
        """A bucket in this GPU's memory, for an engine on the same GPU. Collective. `after`: calls to wait for."""
        self._stash.take()
        return self._exporter.share(bucket)

    def open_weights_group(self) -> tuple[str, int]:
        """On rank 0: where the engines meet it."""
        return self._exporter.address()

    def join_weights_group(self, port: int, world_size: int, name: str) -> None:
        """On rank 0: make the NCCL group of weights with the engines; returns when all are there."""
        self._exporter.join_group(port, world_size, name)

    def broadcast_bucket(self, bucket: Bucket, group: str) -> None:
        """Broadcast a bucket from rank 0 to the engines of `group`. Collective."""
        self._exporter.broadcast(bucket, group)

    def write_bucket(self, bucket: Bucket, file: str) -> None:
        """Write a bucket to a safetensors file (rank 0). Collective."""
        self._stash.take()
        self._exporter.write(bucket, file)

    def finish_export(self, *after: None) -> tuple[str, dict[str, Entry]]:
        """Digest and table of what was exported since the last call; `after`: calls to wait for."""
        return self._exporter.finish()

    # -- memory, where engines share the GPU --------------------------------------------------------------------

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

    def _on_device(self) -> Backend:
        """The backend, its tensors back from host memory."""
        self._stash.take()
        return self.backend
