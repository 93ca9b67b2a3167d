"""Ranks and an SGLang engine by the product's own groups, and what several proofs ask of the two.

`group` below is `workers.engine_group.EngineGroup`, `ranks` is `workers.rank_group.RankGroup`.
"""

import os
import random
import signal
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import emit
from benchmarks.gpu.runs import ENGINE_PROCESSES, descendants

PROMPT_TOKENS = 84


def start(made: dict[str, Any], directory: Path, *, gpus: int, ranks: int = 1) -> tuple[Any, Any, Any]:
    """Ray on this host, then the job's ranks with their weights loaded, its engine and the way from one to the other:
    (ranks, group, sync). Colocated engines are asleep."""
    from rljob_api.v1alpha1.job import RLJob
    from rljob_trainer.workers.engine_group import EngineGroup
    from rljob_trainer.workers.gpu_assignment import TrainerGpus
    from rljob_trainer.workers.placement import start_local_ray
    from rljob_trainer.workers.rank_group import RankGroup
    from rljob_trainer.workers.weight_sync import make_weight_sync

    job = RLJob.model_validate(made)
    start_local_ray(ranks, ranks, gpus)
    began = time.monotonic()
    shared = TrainerGpus(job.spec, lambda: None)
    rank_group = RankGroup(job, directory, lambda: None, gpus=shared)
    sync = make_weight_sync(job.spec, rank_group, directory, lambda: None)
    replaced = partial(emit, "engine replaced")
    group = EngineGroup(job, directory, lambda: None, replaced, sync=sync, gpus=shared)
    rank_group.start()
    rank_group.load(None)
    rank_group.begin_rl()
    emit("ranks up", round(time.monotonic() - began, 1), "s")
    group.start()
    emit("ranks and engine up", round(time.monotonic() - began, 1), "s")
    return rank_group, group, sync


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Token ids of `count` prompts, sixteen the same each."""
    rng = random.Random(0)
    distinct = [[rng.randrange(1000, vocabulary - 1) for _ in range(PROMPT_TOKENS)] for _ in range(count // 16)]
    return [distinct[number // 16] for number in range(count)]


def samples_of(ids: Sequence[Sequence[int]], seed: int = 0) -> list[Any]:
    """A sample of each prompt."""
    from rljob.types import Sample

    return [
        Sample("", list(prompt), group=number // 16, index=number % 16, seed=seed * 100000 + number)
        for number, prompt in enumerate(ids)
    ]


def generate(group: Any, samples: list[Any], tokens: int) -> list[Any]:
    """Of `tokens` tokens each."""
    from rljob.types import SamplingParams

    sampling = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    made: list[Any] = group.generate(samples, sampling, None, limit=200.0, tick=lambda: None)
    return made


def tell_log_probabilities(ranks: Any, made: list[Any]) -> None:
    """The ranks' and the engine's of the same tokens."""
    from rljob.types import TrainSample

    train = [TrainSample(s.prompt_ids, s.response_ids, s.loss_mask, s.logprobs, 0.0) for s in made]
    mine = ranks.compute_logprobs(train)
    gaps = sorted(abs(a - b) for s, row in zip(made, mine, strict=True) for a, b in zip(s.logprobs, row, strict=True))
    emit("log-probs, trainer − engine: mean absolute", round(statistics.fmean(gaps), 5), "nats", 0.02, at_most=True)
    for share in (0.99, 0.999):
        emit(f"log-probs: {share:.1%} of {len(gaps)} below", round(gaps[int(len(gaps) * share)], 5), "nats")
    emit("log-probs: largest", round(gaps[-1], 5), "nats")


def tell_interrupted(group: Any, samples: list[Any], tokens: int, syncs: Sequence[Any]) -> None:
    """Each of `syncs` is called while `samples` are generated: they are whole, of several versions in order."""
    from rljob.types import SamplingParams

    pending = group.submit(samples, SamplingParams(max_new_tokens=tokens, ignore_eos=True), None)
    for sync in syncs:
        pending.poll(0.7)
        began = time.monotonic()
        sync()
        emit("sync while generating", round(time.monotonic() - began, 3), "s")
    _wait(pending, 60.0)
    made = pending.results()
    mixed = sum(len(set(sample.policy_versions)) > 1 for sample in made)
    whole = all(len(s.response_ids) == tokens and s.policy_versions == sorted(s.policy_versions) for s in made)
    emit("samples of several versions, all whole", [mixed, whole])


def tell_killed(group: Any, samples: list[Any], tokens: int) -> None:
    """SIGKILL of one of the engine's processes while it generates: it is replaced, and the samples are made again."""
    from rljob.types import SamplingParams

    pending = group.submit(samples, SamplingParams(max_new_tokens=tokens, ignore_eos=True), None)
    pending.poll(0.5)
    below = descendants(os.getpid())
    victim = next(pid for word in ENGINE_PROCESSES for pid, line in below.items() if word in line)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _wait(pending, 200.0)
    whole = sum(len(sample.response_ids) == tokens for sample in pending.results())
    emit("whole samples after a SIGKILL of one of the engine's processes", whole, "", len(samples))
    emit("time until they were all there", round(time.monotonic() - began, 1), "s")


def _wait(pending: Any, limit: float) -> None:
    deadline = time.monotonic() + limit
    while not pending.done and time.monotonic() < deadline:
        pending.poll(1.0)
