"""The trainer ranks as one thing: every call goes to all of them at once, and a lost or stuck one is named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rljob.types import TokenSignals, TrainSample
from rljob_api.manifest.arithmetic import data_parallel_rank, data_parallel_size, world_size
from rljob_api.v1alpha1.job import RLJob

from rljob_trainer.training.balance import restore, shares
from rljob_trainer.weights.buckets import Bucket
from rljob_trainer.workers.gpu_assignment import TrainerGpus
from rljob_trainer.workers.placement import TRAINER_RESOURCE, make_actor, rank_gpu_share
from rljob_trainer.workers.waiting import gather

START_SECONDS = 600.0
Calls = dict[str, Any]
"""Calls under way: worker name → ObjectRef."""


class RankGroup:
    """All ranks of the job. `tick` runs about once a second while they are waited for.

    A rank runs its calls one by one in the order they were made, so steps may be submitted ahead of their results.
    """

    def __init__(
        self,
        job: RLJob,
        job_dir: Path,
        tick: Callable[[], None],
        pulses: Path | None = None,
        gpus: TrainerGpus | None = None,
    ) -> None:
        """`pulses`: folder for the ranks' signs of life, see `watch.pulse`. `gpus`: theirs, where they are booked."""
        from rljob_trainer.training.rank import TrainerRank

        self.size = world_size(job.spec)
        # Ranks that hold slices of one copy of the model get the same share of a batch.
        self._copies = data_parallel_size(job.spec)
        self._share_of = [data_parallel_rank(job.spec, rank) for rank in range(self.size)]
        self._balanced = job.spec.trainer.balance_data
        self._limit = float(job.spec.trainer.rank_timeout_seconds)
        self._tick, self._gpus = tick, gpus
        share = rank_gpu_share(job.spec)
        manifest = job.to_manifest()
        self._ranks = [
            make_actor(
                TrainerRank,
                TRAINER_RESOURCE,
                manifest,
                str(job_dir),
                rank,
                self.size,
                None if pulses is None else str(pulses),
                name=f"rank {rank}",
                gpus=share,
                where=None if gpus is None else gpus.of(rank),
            )
            for rank in range(self.size)
        ]

    def start(self) -> None:
        """Form the process group."""
        meeting = {"rank 0": self._ranks[0].rendezvous.remote()}
        address = self._wait(meeting, "starting", START_SECONDS)[0]
        self._wait(self._call("setup", *address), "joining the process group", START_SECONDS)
        if self._gpus is not None:
            self._gpus.devices = self._wait(self._call("visible_devices"), "telling its GPU")

    def load(self, commit: Path | None) -> None:
        """Weights, optimizer and reference of a commit; without one, those that the manifest describes."""
        self._wait(self._call("load", None if commit is None else str(commit)), "loading")

    def submit_sft(self, rows: Sequence[Any], step: int, total_steps: int) -> Calls:
        """Start one SFT step on `rows`, the global batch; `step` counts from 0 within the stage."""
        shares = self._shares([len(row.input_ids) for row in rows])
        return {
            f"rank {rank}": actor.sft_step.remote(_pick(rows, own), step, total_steps)
            for rank, (actor, own) in enumerate(zip(self._ranks, shares, strict=True))
        }

    def sft_result(self, calls: Calls, step: int) -> dict[str, float]:
        """Metrics of a step that `submit_sft` started."""
        result: dict[str, float] = self._wait(calls, f"SFT step {step}")[0]
        return result

    def begin_rl(self) -> None:
        """Freeze the reference and start the optimizer of reinforcement learning."""
        self._wait(self._call("begin_rl"), "freezing the reference")

    def compute_logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probabilities of `samples` under the weights as they are, in the order of `samples`."""
        result: list[list[float]] = self._of_each("compute_logprobs", samples, "computing log-probabilities")
        return result

    def token_signals(self, samples: Sequence[TrainSample]) -> list[TokenSignals]:
        """The critic's values and the KL of the samples' tokens, in the order of `samples`."""
        result: list[TokenSignals] = self._of_each("token_signals", samples, "computing values and KL")
        return result

    def rl_step(
        self,
        samples: Sequence[TrainSample],
        step: int,
        total_steps: int,
        old_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on `samples`, the global batch; `step` counts from 0 within the stage."""
        calls = {
            f"rank {rank}": actor.rl_step.remote(
                _pick(samples, own), step, total_steps, None if old_logprobs is None else _pick(old_logprobs, own)
            )
            for rank, (actor, own) in enumerate(zip(self._ranks, self._shares(_lengths(samples)), strict=True))
        }
        result: dict[str, float] = self._wait(calls, f"RL step {step}")[0]
        return result

    def full_weights(self) -> dict[str, Any]:
        """All weights as numpy arrays under their Hugging Face names."""
        weights: dict[str, Any] = self._wait(self._call("full_weights"), "gathering the weights")[0]
        return weights

    def weights_plan(self, max_bytes: int) -> list[Bucket]:
        """The buckets in which the weights travel."""
        plan: list[Bucket] = self._wait({"rank 0": self._ranks[0].weights_plan.remote(max_bytes)}, "planning")[0]
        return plan

    def export_bucket(self, bucket: Bucket, *after: Any) -> list[Any]:
        """Refs of every rank's payload for engines on its GPU; `after`: refs to wait for."""
        return [actor.export_bucket.remote(bucket, *after) for actor in self._ranks]

    def free_gpu_memory(self) -> list[int]:
        """Bytes that are free on each rank's GPU."""
        found: list[int] = self._wait(self._call("free_gpu_memory"), "looking at memory")
        return found

    def make_room(self, wanted: Sequence[int]) -> list[Any]:
        """Each rank gives cached memory back unless so many bytes are free on its GPU. Refs of every rank's call."""
        return [actor.make_room.remote(size) for actor, size in zip(self._ranks, wanted, strict=True)]

    def put_away(self, *after: Any) -> list[Any]:
        """Refs of every rank's moving to host memory; `after`: refs to wait for."""
        return [actor.put_away.remote(*after) for actor in self._ranks]

    def open_weights_group(self) -> tuple[str, int]:
        """Where the engines meet rank 0."""
        where: tuple[str, int] = self._wait({"rank 0": self._ranks[0].open_weights_group.remote()}, "listening")[0]
        return where

    def join_weights_group(self, port: int, world_size: int, name: str) -> Any:
        """Ref of rank 0's joining."""
        return self._ranks[0].join_weights_group.remote(port, world_size, name)

    def broadcast_bucket(self, bucket: Bucket, group: str) -> list[Any]:
        """Refs of the ranks' calls; rank 0 sends."""
        return [actor.broadcast_bucket.remote(bucket, group) for actor in self._ranks]

    def write_bucket(self, bucket: Bucket, file: str) -> list[Any]:
        """Refs of the ranks' calls; rank 0 writes."""
        return [actor.write_bucket.remote(bucket, file) for actor in self._ranks]

    def finish_export(self, *after: Any) -> Any:
        """Ref of rank 0's digest and table of what was exported; the others drop theirs."""
        calls = [actor.finish_export.remote(*after) for actor in self._ranks]
        return calls[0]

    def save(self, directory: Path) -> list[Any]:
        """Every rank writes its state into `directory`. Returns the entries of the manifest."""
        return [entry for entries in self._wait(self._call("save", str(directory)), "saving") for entry in entries]

    def begin_save(self, directory: Path) -> None:
        """Every rank copies its state and writes it into `directory` in the background, see `checkpoint.background`."""
        self._wait(self._call("begin_save", str(directory)), "copying the state")

    def export_hf(self, directory: Path) -> None:
        """Write the model as a Hugging Face folder."""
        self._wait(self._call("export_hf", str(directory)), "exporting the model")

    def _shares(self, lengths: Sequence[int]) -> list[list[int]]:
        """For each rank, the numbers of the items it gets."""
        dealt = shares(lengths, self._copies, balanced=self._balanced)
        return [dealt[share] for share in self._share_of]

    def _of_each(self, method: str, samples: Sequence[TrainSample], doing: str) -> list[Any]:
        numbers = self._shares(_lengths(samples))
        calls = {
            f"rank {rank}": getattr(actor, method).remote(_pick(samples, own))
            for rank, (actor, own) in enumerate(zip(self._ranks, numbers, strict=True))
        }
        found = self._wait(calls, doing)
        firsts = [self._share_of.index(share) for share in range(self._copies)]
        return restore([found[rank] for rank in firsts], [numbers[rank] for rank in firsts])

    def _call(self, method: str, *args: Any) -> Calls:
        return {f"rank {rank}": getattr(actor, method).remote(*args) for rank, actor in enumerate(self._ranks)}

    def _wait(self, calls: Calls, doing: str, limit: float | None = None) -> list[Any]:
        return list(gather(calls, limit=limit or self._limit, doing=doing, tick=self._tick).values())


def _pick[T](items: Sequence[T], numbers: Sequence[int]) -> list[T]:
    return [items[number] for number in numbers]


def _lengths(samples: Sequence[TrainSample]) -> list[int]:
    return [len(sample.prompt_ids) + len(sample.response_ids) for sample in samples]
