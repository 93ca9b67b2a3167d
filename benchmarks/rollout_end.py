"""What a rollout costs beside the engine: from the driver's call to the engine's start, from its answers to samples.

The product's worker as a Ray actor and its SGLang engine, with SGLang itself played: 512 requests of 512 tokens each
end at the same moment, as with `ignore_eos`, and become answers with log-probabilities as SGLang makes them. No GPU is
needed; on a GPU's host the lines say how long the GPU waits there. Seconds of the host, so no goal; medians of five.
"""

import asyncio
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rljob.types import Sample, SamplingParams
from rljob_trainer.inference.sglang import engine as engine_module
from rljob_trainer.workers.engine_pool import CALLS_AT_ONCE
from rljob_trainer.workers.generation import calls_of
from rljob_trainer.workers.rollout_worker import RolloutWorker

from benchmarks.decode_together import SAMPLES, TOKENS, VOCABULARY, tokenizer

TURNS, PROMPT_TOKENS, WAIT_SECONDS = 5, 84, 0.5
NOTIFIED = 16
"""SGLang's `batch_notify_size`."""


class Played:
    """SGLang's front: all requests of a rollout are answered together, `WAIT_SECONDS` after the last has come."""

    def __init__(self, **_: Any) -> None:
        draw = random.Random(1)
        self.tokenizer_manager = SimpleNamespace(freeze_gc=self._freeze)
        self._drawn = [
            ([-draw.random() for _ in range(TOKENS)], [draw.randrange(VOCABULARY) for _ in range(TOKENS)])
            for _ in range(SAMPLES)
        ]
        self._waiting: list[asyncio.Future[dict[str, Any]]] = []
        self.all_asked = self.answered = 0.0

    async def async_generate(self, **_: Any) -> dict[str, Any]:
        """As SGLang's."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._waiting.append(future)
        if len(self._waiting) == SAMPLES:
            self.all_asked = time.time()
            self._answering = asyncio.create_task(self._answer())
        return await future

    async def _answer(self) -> None:
        """A tuple for each token, `NOTIFIED` requests in a turn of the event loop: as SGLang's tokenizer manager."""
        await asyncio.sleep(WAIT_SECONDS)
        waiting, self._waiting = self._waiting, []
        self.answered = time.time()
        for number, (future, (values, ids)) in enumerate(zip(waiting, self._drawn, strict=True), start=1):
            meta = {
                "output_token_logprobs": [(value, token, None) for value, token in zip(values, ids, strict=True)],
                "completion_tokens": TOKENS,
                "finish_reason": {"type": "length", "length": TOKENS},
            }
            future.set_result({"meta_info": meta})
            if number % NOTIFIED == 0:
                await asyncio.sleep(0)

    async def _freeze(self) -> None:
        gc.collect()
        gc.freeze()

    def shutdown(self) -> None:
        """As SGLang's."""


class Worker(RolloutWorker):
    """The product's worker over the played engine."""

    async def start(self, devices: str | None = None) -> dict[str, Any]:
        """As the product's; the engine serves at once."""
        engine_module._sglang = Played
        started = await super().start(devices)
        engine: Any = self._service._engine
        engine.version = 0
        engine._serves.set()
        await engine._freeze_garbage()
        return started

    async def marks(self) -> tuple[float, float]:
        """When the last rollout's requests were all there, and when they were answered (time.time)."""
        engine: Any = self._service._engine
        return engine._engine.all_asked, engine._engine.answered


def manifest() -> dict[str, Any]:
    """A job with one SGLang engine."""
    spec = {
        "model": {"tokenizerPath": "tokenizer", "dtype": "bfloat16",
                  "randomInit": {"hiddenSize": 32, "intermediateSize": 48, "numHiddenLayers": 1}},
        "data": {"train": {"path": "x.jsonl"}},
        "rollout": {"engine": "sglang", "gpusPerEngine": 1, "maxContextLength": 2048},
        "trainer": {"backend": "fsdp", "gpusPerReplica": 1},
        "tracking": {"metricsPort": 0},
    }  # fmt: skip
    return {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "rollout-end"}, "spec": spec}


def rollouts(directory: Path) -> Iterator[tuple[float, float]]:
    """Seconds before and after the engine's work, of each rollout."""
    import ray
    from rljob_trainer.workers.placement import start_local_ray

    draw = random.Random(2)
    tokenizer().save_pretrained(directory / "tokenizer")
    start_local_ray(1, 1)
    try:
        worker = (
            ray.remote(Worker).options(num_cpus=0, max_concurrency=CALLS_AT_ONCE).remote(manifest(), str(directory), 0)
        )
        ray.get(worker.start.remote(), timeout=300)
        gc.collect()
        gc.freeze()
        for turn in range(TURNS + 1):
            samples = [
                Sample("", [draw.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)], group=number // 16)
                for number in range(SAMPLES)
            ]
            began = time.time()
            sampling = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True)
            calls = [
                worker.generate.remote([samples[number] for number in call], sampling)
                for call in calls_of(range(SAMPLES))
            ]
            made: list[Sample] = [sample for call in ray.get(calls, timeout=300) for sample in call]
            ended = time.time()
            asked, answered = ray.get(worker.marks.remote(), timeout=60)
            if sum(len(sample.response_ids) for sample in made) != SAMPLES * TOKENS:
                raise RuntimeError("tokens are missing")
            if turn:
                yield asked - began, ended - answered
    finally:
        ray.shutdown()


def main() -> int:
    """Print the lines."""
    with tempfile.TemporaryDirectory(prefix="rollout-end-") as folder:
        found = list(rollouts(Path(folder)))
    for name, seconds in zip(("before", "after"), zip(*found, strict=True), strict=True):
        value = round(statistics.median(seconds), 4)
        line = {"name": f"{SAMPLES} x {TOKENS} tokens, {name} the engine's work", "value": value, "unit": "s"}
        print(json.dumps(line | {"goal": None, "met": None}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
