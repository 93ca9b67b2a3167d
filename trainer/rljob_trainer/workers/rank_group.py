"""The trainer ranks as one thing: every call goes to all of them at once, and a lost or stuck one is named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rljob.types import TokenSignals, TrainSample
from rljob_api.rules.arithmetic import data_parallel_rank, data_parallel_size, world_size
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
    """All ranks of the job: the calls of `training.rank.TrainerRank`, each on every rank or on rank 0 alone, waited for
    here or (those of weights and memory) by `workers.weight_sync`.

    `tick` runs about once a second while ranks are waited for. A rank runs its calls one by one in the order they were
    made, so steps may be submitted ahead of their results.
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
        host, port = self._of_first(lambda rank: rank.rendezvous.remote(), "starting", START_SECONDS)
        self._of_all(lambda rank: rank.setup.remote(host, port), "joining the process group", START_SECONDS)
        if self._gpus is not None:
            self._gpus.devices = self._of_all(lambda rank: rank.visible_devices.remote(), "telling its GPU")

    def load(self, commit: Path | None) -> None:
        """Weights, optimizer and reference of a commit; without one, those that the manifest describes."""
        self._of_all(lambda rank: rank.load.remote(None if commit is None else str(commit)), "loading")

    # -- steps --------------------------------------------------------------------------------------------------

    def submit_sft(self, rows: Sequence[Any], step: int, total_steps: int) -> Calls:
        """Start one SFT step on `rows`, the global batch; `step` counts from 0 within the stage."""
        numbers = self._shares([len(row.input_ids) for row in rows])
        return self._call_with(numbers, lambda rank, own: rank.sft_step.remote(_pick(rows, own), step, total_steps))

    def sft_result(self, calls: Calls, step: int) -> dict[str, float]:
        """Metrics of a step that `submit_sft` started."""
        metrics: dict[str, float] = self._wait(calls, f"SFT step {step}")[0]
        return metrics

    def begin_rl(self) -> None:
        """Freeze the reference and start the optimizer of reinforcement learning."""
        self._of_all(lambda rank: rank.begin_rl.remote(), "freezing the reference")

    def compute_logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probabilities of `samples` under the weights as they are, in the order of `samples`."""
        return self._of_each(
            samples, lambda rank, share: rank.compute_logprobs.remote(share), "computing log-probabilities"
        )

    def token_signals(self, samples: Sequence[TrainSample]) -> list[TokenSignals]:
        """The critic's values and the KL of the samples' tokens, in the order of `samples`."""
        return self._of_each(samples, lambda rank, share: rank.token_signals.remote(share), "computing values and KL")

    def rl_step(
        self,
        samples: Sequence[TrainSample],
        step: int,
        total_steps: int,
        old_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, float]:
        """One optimizer step on `samples`, the global batch; `step` counts from 0 within the stage."""

        def submit(rank: Any, own: list[int]) -> Any:
            old = None if old_logprobs is None else _pick(old_logprobs, own)
            return rank.rl_step.remote(_pick(samples, own), step, total_steps, old)

        calls = self._call_with(self._shares(_lengths(samples)), submit)
        metrics: dict[str, float] = self._wait(calls, f"RL step {step}")[0]
        return metrics

    # -- state --------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> list[Any]:
        """Every rank writes its state into `directory`. Returns the entries of the manifest."""
        written = self._of_all(lambda rank: rank.save.remote(str(directory)), "saving")
        return [entry for entries in written for entry in entries]

    def begin_save(self, directory: Path) -> None:
        """Every rank copies its state and writes it into `directory` in the background, see `checkpoint.background`."""
        self._of_all(lambda rank: rank.begin_save.remote(str(directory)), "copying the state")

    def export_hf(self, directory: Path) -> None:
        """Write the model as a Hugging Face folder."""
        self._of_all(lambda rank: rank.export_hf.remote(str(directory)), "exporting the model")

    # -- weights for the engines --------------------------------------------------------------------------------

    def full_weights(self) -> dict[str, Any]:
        """All weights as numpy arrays under their Hugging Face names."""
        weights: dict[str, Any] = self._of_all(lambda rank: rank.full_weights.remote(), "gathering the weights")[0]
        return weights

    def weights_plan(self, max_bytes: int) -> list[Bucket]:
        """The buckets in which the weights travel."""
        plan: list[Bucket] = self._of_first(lambda rank: rank.weights_plan.remote(max_bytes), "planning")
        return plan

    def export_bucket(self, bucket: Bucket, *after: Any) -> list[Any]:
        """Refs of every rank's payload for engines on its GPU; `after`: refs to wait for."""
        return [rank.export_bucket.remote(bucket, *after) for rank in self._ranks]

    def open_weights_group(self) -> tuple[str, int]:
        """Where the engines meet rank 0."""
        where: tuple[str, int] = self._of_first(lambda rank: rank.open_weights_group.remote(), "listening")
        return where

    def join_weights_group(self, port: int, world_size: int, name: str) -> Any:
        """Ref of rank 0's joining."""
        return self._ranks[0].join_weights_group.remote(port, world_size, name)

    def broadcast_bucket(self, bucket: Bucket, group: str) -> list[Any]:
        """Refs of the ranks' calls; rank 0 sends."""
        return [rank.broadcast_bucket.remote(bucket, group) for rank in self._ranks]

    def write_bucket(self, bucket: Bucket, file: str) -> list[Any]:
        """Refs of the ranks' calls; rank 0 writes."""
        return [rank.write_bucket.remote(bucket, file) for rank in self._ranks]

    def finish_export(self, *after: Any) -> Any:
        """Ref of rank 0's digest and table of what was exported; the others drop theirs."""
        calls = [rank.finish_export.remote(*after) for rank in self._ranks]
        return calls[0]

    # -- memory, where engines share the GPUs -------------------------------------------------------------------

    def free_gpu_memory(self) -> list[int]:
        """Bytes that are free on each rank's GPU."""
        return self._of_all(lambda rank: rank.free_gpu_memory.remote(), "looking at memory")

    def make_room(self, wanted: Sequence[int]) -> list[Any]:
        """Each rank gives cached memory back unless so many bytes are free on its GPU. Refs of every rank's call."""
        return [rank.make_room.remote(size) for rank, size in zip(self._ranks, wanted, strict=True)]

    def put_away(self, *after: Any) -> list[Any]:
        """Refs of every rank's moving to host memory; `after`: refs to wait for."""
        return [rank.put_away.remote(*after) for rank in self._ranks]

    # -- inside -------------------------------------------------------------------------------------------------

    def _of_all(self, call: Callable[[Any], Any], doing: str, limit: float | None = None) -> list[Any]:
        """What every rank returns."""
        return self._wait({f"rank {number}": call(rank) for number, rank in enumerate(self._ranks)}, doing, limit)

    def _of_first(self, call: Callable[[Any], Any], doing: str, limit: float | None = None) -> Any:
        """What rank 0 returns, which alone is called."""
        return self._wait({"rank 0": call(self._ranks[0])}, doing, limit)[0]

    def _of_each(
        self, samples: Sequence[TrainSample], call: Callable[[Any, list[TrainSample]], Any], doing: str
    ) -> list[Any]:
        """What the ranks return for the samples of their shares, one thing for each, in the order of `samples`."""
        numbers = self._shares(_lengths(samples))
        found = self._wait(self._call_with(numbers, lambda rank, own: call(rank, _pick(samples, own))), doing)
        firsts = [self._share_of.index(share) for share in range(self._copies)]
        return restore([found[rank] for rank in firsts], [numbers[rank] for rank in firsts])

    def _call_with(self, numbers: list[list[int]], call: Callable[[Any, list[int]], Any]) -> Calls:
        """Calls every rank with the numbers of its share."""
        pairs = enumerate(zip(self._ranks, numbers, strict=True))
        return {f"rank {number}": call(rank, own) for number, (rank, own) in pairs}

    def _shares(self, lengths: Sequence[int]) -> list[list[int]]:
        """For each rank, the numbers of the items it gets."""
        dealt = shares(lengths, self._copies, balanced=self._balanced)
        return [dealt[share] for share in self._share_of]

    def _wait(self, calls: Calls, doing: str, limit: float | None = None) -> list[Any]:
        return list(gather(calls, limit=limit or self._limit, doing=doing, tick=self._tick).values())


def _pick[T](items: Sequence[T], numbers: Sequence[int]) -> list[T]:
    return [items[number] for number in numbers]


def _lengths(samples: Sequence[TrainSample]) -> list[int]:
    return [len(sample.prompt_ids) + len(sample.response_ids) for sample in samples]
