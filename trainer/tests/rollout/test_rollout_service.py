"""A rollout worker from a manifest: start, weights, generation with a real HTTP retriever, health, failures."""

import asyncio
import importlib.util
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from rljob.types import EngineError, Sample, SamplingParams
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.models import build_model, load_tokenizer
from rljob_trainer.quickstart.tokenizer import write_tokenizer
from rljob_trainer.rollout.service import RolloutService
from rljob_trainer.weights.arrays import to_array
from rljob_trainer.weights.digest import weights_digest

_spec = importlib.util.spec_from_file_location("retriever_server", Path(__file__).with_name("retriever_server.py"))
assert _spec is not None
assert _spec.loader is not None
retriever_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(retriever_server)
running = retriever_server.running

SYLLABLES = ("Zafo", "Miru", "Kela", "Dobi", "Suna", "Tepo")


@pytest.fixture(scope="module")
def job_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_tokenizer(folder / "world" / "tokenizer", ("mentor", "home"), SYLLABLES)
    return folder


def manifest(**rollout: Any) -> dict[str, Any]:
    shape = {"hiddenSize": 32, "intermediateSize": 48, "numHiddenLayers": 2, "initializerRange": 0.3}
    generate = {"type": "search", "search": {"maxTurns": 3, "timeoutSeconds": 5}}
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "rollout-test"},
        "spec": {
            "model": {"tokenizerPath": "world/tokenizer", "randomInit": shape, "dtype": "float32"},
            "data": {"train": {"path": "x.jsonl"}},
            "tracking": {"metricsPort": 0},
            "rollout": {
                "engine": "torch",
                "maxContextLength": 256,
                "engineArgs": {"slots": 16},
                "generate": generate,
                "sampling": {"maxResponseLength": 200, "maxTokensPerTurn": 30},
            }
            | rollout,
        },
    }


def weights_of(job: RLJob, job_dir: Path, seed: int = 0) -> dict[str, Any]:
    """Random weights that lean to the tags, so that random models search and answer now and then."""
    tokenizer = load_tokenizer(job.spec.model, job_dir)
    model = build_model(job.spec.model, job_dir, tokenizer, seed=seed)
    with torch.no_grad():
        for tag in ("<search>", "</search>", "<answer>", "</answer>"):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(tag)] *= 3
    return {name: to_array(parameter) for name, parameter in model.named_parameters()}


@asynccontextmanager
async def serving(job_dir: Path, index: int = 0, seed: int = 0, **rollout: Any) -> AsyncIterator[RolloutService]:
    job = RLJob.model_validate(manifest(**rollout))
    service = RolloutService(job, job_dir, index)
    try:
        await service.start()
        weights = weights_of(job, job_dir, seed)
        await service.update_weights(1, weights_digest(weights), weights)
        yield service
    finally:
        await service.shutdown()


def samples(job_dir: Path, count: int) -> list[Sample]:
    tokenizer = load_tokenizer(RLJob.model_validate(manifest()).spec.model, job_dir)
    prompts = [f"What is {SYLLABLES[i % 6]} {SYLLABLES[(i + 1) % 6]}'s home?" for i in range(count // 4)]
    return [
        Sample(prompt, tokenizer.encode(prompt), group=group, index=index, seed=group * 1000 + index)
        for group, prompt in enumerate(prompts)
        for index in range(4)
    ]


SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=200)


async def test_a_rollout_searches_the_retriever(job_dir: Path) -> None:
    async with running() as retriever, serving(job_dir) as service:
        given = samples(job_dir, 48)
        results = await service.generate(given, SAMPLING, retriever.url)
        assert [(s.group, s.index) for s in results] == [(s.group, s.index) for s in given]
        searches = sum(float(s.info["searches"]) for s in results)
        assert searches == len(retriever.queries) > 0
        assert {s.status for s in results} <= {"completed", "truncated"}
        assert any("<information>" in s.response for s in results)
        for sample in results:
            n = len(sample.response_ids)
            assert len(sample.loss_mask) == len(sample.logprobs) == len(sample.policy_versions) == n <= 200
            assert {v for v, m in zip(sample.policy_versions, sample.loss_mask, strict=True) if m} <= {1}
        metrics = service.metrics()
        assert metrics["generated_tokens"] == sum(sum(s.loss_mask) for s in results)
        assert metrics["search_failures"] == 0


async def test_two_engines_and_a_slow_retriever_give_the_same_samples(job_dir: Path) -> None:
    delays = iter(range(10_000))

    async def slow(body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(next(delays) * 37 % 100 / 2000)
        return await retriever_server.FakeRetriever.echo(body)

    async with running() as retriever, serving(job_dir) as service:
        expected = await service.generate(samples(job_dir, 48), SAMPLING, retriever.url)
    async with (
        running(slow) as retriever,
        serving(job_dir, 0, engineArgs={"slots": 7}) as first,
        serving(job_dir, 1) as second,
    ):
        given = samples(job_dir, 48)
        halves = await asyncio.gather(
            first.generate(given[0::2], SAMPLING, retriever.url), second.generate(given[1::2], SAMPLING, retriever.url)
        )
    assert [halves[i % 2][i // 2] for i in range(48)] == expected


async def test_a_silent_retriever_costs_samples_and_not_the_rollout(job_dir: Path) -> None:
    async def broken(body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=500, text="no index")

    async with running(broken) as retriever, serving(job_dir) as service:
        results = await service.generate(samples(job_dir, 16), SAMPLING, retriever.url)
        failed = [s for s in results if s.status == "failed"]
        assert failed
        assert len(failed) == sum(float(s.info["search_failures"]) for s in results)
        assert all("HTTP 500: no index" in str(s.info["error"]) for s in failed)
        assert service.metrics()["failed_samples"] == len(failed)


async def test_new_weights_change_samples_and_their_version(job_dir: Path) -> None:
    async with running() as retriever, serving(job_dir) as service:
        before = await service.generate(samples(job_dir, 8), SAMPLING, retriever.url)
        weights = weights_of(service.job, job_dir, seed=1)
        digest = weights_digest(weights)
        assert await service.update_weights(2, digest, weights) == digest
        assert service.health() == {"engine": 0, "version": 2, "digest": digest}
        after = await service.generate(samples(job_dir, 8), SAMPLING, retriever.url)
        assert [s.response_ids for s in before] != [s.response_ids for s in after]
        assert {v for s in after for v in s.policy_versions if v >= 0} == {2}


async def test_weights_from_a_folder(job_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    async with serving(job_dir) as service:
        weights = weights_of(service.job, job_dir, seed=2)
        save_file({name: torch.from_numpy(value) for name, value in weights.items()}, tmp_path / "model.safetensors")
        digest = weights_digest(weights)
        assert await service.update_weights(5, digest, str(tmp_path)) == digest
        with pytest.raises(EngineError, match=r"no \*\.safetensors"):
            await service.update_weights(6, digest, str(tmp_path / "missing"))


async def test_weights_of_another_digest_are_not_served(job_dir: Path) -> None:
    async with serving(job_dir, index=4) as service:
        weights = weights_of(service.job, job_dir, seed=1)
        digest = weights_digest(weights)
        weights["model.norm.weight"] = weights["model.norm.weight"] + 1
        with pytest.raises(EngineError, match=r"engine 4: weights version 2: digest \w+… is served, \w+… was sent"):
            await service.update_weights(2, digest, weights)
        with pytest.raises(EngineError, match="engine 4 has no weights"):
            await service.generate(samples(job_dir, 4), SAMPLING, "http://127.0.0.1:1")


async def test_an_update_that_is_lost_on_the_way_is_noticed(job_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is that of the tensors served, not of the arrays received."""
    async with serving(job_dir) as service:
        assert service._engine is not None
        monkeypatch.setattr(service._engine._weights, "load", lambda weights: None)
        weights = weights_of(service.job, job_dir, seed=1)
        with pytest.raises(EngineError, match="is served"):
            await service.update_weights(2, weights_digest(weights), weights)


async def test_weights_in_a_higher_precision_are_rounded_knowingly(job_dir: Path) -> None:
    job = RLJob.model_validate(manifest())
    weights = weights_of(job, job_dir)
    job.spec.model.dtype = "bfloat16"
    service = RolloutService(job, job_dir)
    try:
        await service.start()
        assert await service.update_weights(1, weights_digest(weights), weights) == weights_digest(weights)
        with pytest.raises(EngineError, match="is served"):
            await service.update_weights(2, "0" * 64, weights)
    finally:
        await service.shutdown()


async def test_nothing_is_generated_before_start_and_weights(job_dir: Path) -> None:
    service = RolloutService(RLJob.model_validate(manifest()), job_dir, 3)
    with pytest.raises(EngineError, match="engine 3 is not started"):
        await service.generate([], SAMPLING)
    started = await service.start()
    assert (started["slots"], started["max_context_length"], started["deterministic"]) == (16, 256, True)
    with pytest.raises(EngineError, match="engine 3 has no weights"):
        await service.generate([], SAMPLING)
    await service.shutdown()


async def test_a_hang_of_the_engine_is_found_and_named(job_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(job_dir, index=2, generate={"type": "single_turn"}) as service:
        assert service._engine is not None
        service._stuck_seconds = 0.5
        monkeypatch.setattr(service._engine._runner, "step", lambda: time.sleep(4))
        with pytest.raises(EngineError, match="engine 2: the engine has not finished a step"):
            await service.generate(samples(job_dir, 4), SAMPLING)
        with pytest.raises(EngineError, match="engine 2"):
            service.health()


async def test_a_rollout_that_takes_too_long_names_who_waits(job_dir: Path) -> None:
    async def hang(body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async with running(hang) as retriever, serving(job_dir, timeoutSeconds=1) as service:
        with pytest.raises(EngineError, match=r"timeoutSeconds = 1 is over; waiting: group \d+ sample \d+"):
            await service.generate(samples(job_dir, 16), SAMPLING, retriever.url)


async def test_mistakes_of_the_user_are_sentences(job_dir: Path) -> None:
    async def start(**rollout: Any) -> None:
        await RolloutService(RLJob.model_validate(manifest(**rollout)), job_dir).start()

    with pytest.raises(UserError, match=r"spec\.rollout\.engine: sglang"):
        await start(engine="sglang")
    with pytest.raises(UserError, match=r"engineArgs\.mem_fraction"):
        await start(engineArgs={"mem_fraction": 0.5})
    with pytest.raises(UserError, match=r"spec\.rollout\.maxContextLength: 4096 tokens"):
        await start(maxContextLength=4096)
    with pytest.raises(UserError, match=r"generate\.function: there is no module"):
        await start(generate={"type": "custom", "function": "no_such_module_at_all:f"})
    async with serving(job_dir) as service:
        with pytest.raises(UserError, match="no retriever"):
            await service.generate(samples(job_dir, 4), SAMPLING, None)


def test_equal_samples_compare_equal() -> None:
    """The comparisons above look at every field."""
    sample = Sample("Q", [1], response_ids=[2], logprobs=[-0.5])
    assert replace(sample) == sample != replace(sample, logprobs=[-0.6])
