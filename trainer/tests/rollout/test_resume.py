"""Samples that are cut off and continued: nothing they had is lost, and they end as if they had not been cut."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rljob.types import Generation, Sample, SamplingParams, Session
from rljob_trainer.inference.torch_engine import TorchEngine, TorchEngineOptions
from rljob_trainer.rollout.generate import Limits, SingleTurnGenerate
from rljob_trainer.rollout.resume import CutOffError, ResumableEngine, blank, tokens_kept

from trainer.tests.inference.contract import check_generation


class CountingSession:
    """Continues a sequence by its length: token n is n. Ends a turn at multiples of `every`."""

    def __init__(self, engine: "CountingEngine") -> None:
        self.engine, self.length = engine, 0

    async def generate(
        self, new_token_ids: Sequence[int], sampling: SamplingParams, begun: Generation | None = None
    ) -> Generation:
        self.length += len(new_token_ids)
        ids = list(begun.token_ids) if begun else []
        versions = list(begun.policy_versions) if begun else []
        self.length += len(ids)
        reason = "length"
        while len(ids) < sampling.max_new_tokens:
            self.length += 1
            self.engine.made += 1
            ids.append(self.length)
            versions.append(self.engine.version)
            if self.length % self.engine.every == 0:
                reason = "stop"
                break
        shown = ids[:-1] if reason == "stop" else ids
        made = Generation(ids, [-float(i) for i in ids], versions, reason, text=self.engine.tokenizer.decode(shown))  # type: ignore[arg-type]
        check_generation(made, sampling, self.engine.tokenizer, range(0, 10_000, self.engine.every))
        return made

    async def abort(self) -> None:
        return


class Numbers:
    """A token reads as its number."""

    eos_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(f"{number} " for number in token_ids)


class CountingEngine:
    tokenizer = Numbers()
    max_context_length = 10_000

    def __init__(self, every: int = 7) -> None:
        self.every, self.version, self.made = every, 1, 0

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator[Session]:
        yield CountingSession(self)


async def three_turns(sample: Sample, sampling: SamplingParams, engine: Any) -> Sample:
    """A generate function with observations between its turns."""
    async with engine.open(sample.seed) as session:
        new: list[int] = sample.prompt_ids
        for turn in range(3):
            sample.append_generation(await session.generate(new, sampling))
            new = [100 + turn] * 2
            if turn < 2:
                sample.append_observation(new, "o")
    sample.status = "completed"
    sample.info["turns"] = 3.0
    return sample


async def in_pieces(budgets: Sequence[int], engine: CountingEngine) -> tuple[Sample, int]:
    """Generate a sample with these budgets, one after the other, then without one; and the number of cuts."""
    sample, cuts = Sample("p", [1, 2, 3]), 0
    for budget in [*budgets, None]:
        resumable = ResumableEngine(engine, sample.transcript, budget)
        try:
            return await three_turns(blank(sample), SamplingParams(max_new_tokens=9), resumable), cuts
        except CutOffError:
            cuts += 1
            sample = replace(blank(sample), status="aborted", transcript=resumable.transcript())
            engine.version += 1
    raise AssertionError


@given(budgets=st.lists(st.integers(0, 12), max_size=12), every=st.integers(2, 9))
def test_however_it_is_cut_the_sample_is_the_same(budgets: list[int], every: int) -> None:
    whole, _ = asyncio.run(in_pieces([], CountingEngine(every)))
    engine = CountingEngine(every)
    pieced, cuts = asyncio.run(in_pieces(budgets, engine))
    assert replace(pieced, policy_versions=whole.policy_versions) == whole
    assert engine.made == sum(whole.loss_mask)  # no token was generated twice
    made_by = [v for v in pieced.policy_versions if v > 0]
    assert made_by == sorted(made_by)
    assert set(made_by) <= set(range(1, cuts + 2))


async def test_budgets_bound_what_a_round_makes() -> None:
    engine = CountingEngine(every=1000)
    resumable = ResumableEngine(engine, [], budget=5)
    with pytest.raises(CutOffError):
        await three_turns(Sample("p", [1]), SamplingParams(max_new_tokens=50), resumable)
    assert engine.made == 5
    assert tokens_kept(Sample("p", [1], transcript=resumable.transcript())) == 5


async def test_another_answer_of_a_tool_sets_the_turns_after_it_aside() -> None:
    engine = CountingEngine()
    first = ResumableEngine(engine, [], budget=8)
    with pytest.raises(CutOffError):
        await three_turns(Sample("p", [1, 2, 3]), SamplingParams(max_new_tokens=9), first)
    again = ResumableEngine(engine, first.transcript())
    async with again.open(0) as session:
        kept = await session.generate([1, 2, 3], SamplingParams(max_new_tokens=9))
        assert kept == first.transcript()[0][0].generation
        made = engine.made
        other = await session.generate([77], SamplingParams(max_new_tokens=9))
        assert len(other.token_ids) == engine.made - made  # none of them are of the recorded turn
    assert [turn.new_token_ids for turn in again.transcript()[0]] == [[1, 2, 3], [77]]


SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=40, ignore_eos=True)


@asynccontextmanager
async def serving(model: Any, tokenizer: Any) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(model.config, tokenizer, 128, TorchEngineOptions(slots=4))
    try:
        await engine.load_weights(dict(model.named_parameters()), version=1)
        yield engine
    finally:
        engine.shutdown()


async def test_the_torch_engine_goes_on_where_it_was_cut(model: Any, tokenizer: Any) -> None:
    """Same weights: the same tokens as without a cut. Its tokens carry the version that made each."""
    generate = SingleTurnGenerate(Limits(None))
    async with serving(model, tokenizer) as engine:
        whole = await generate(Sample("p", [5, 6, 7], seed=3), SAMPLING, engine)
        sample = Sample("p", [5, 6, 7], seed=3)
        for version in (1, 2, 3):
            await engine.load_weights(dict(model.named_parameters()), version=version)
            resumable = ResumableEngine(engine, sample.transcript, budget=15)
            try:
                sample = await generate(blank(sample), SAMPLING, resumable)
            except CutOffError:
                sample = replace(blank(sample), transcript=resumable.transcript())
    assert sample.response_ids == whole.response_ids
    assert sample.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
    assert sample.policy_versions == [1] * 15 + [2] * 15 + [3] * 10
    assert sample.status == whole.status == "truncated"


async def test_a_stop_string_may_begin_before_the_cut(model: Any, tokenizer: Any) -> None:
    generate = SingleTurnGenerate(Limits(None))
    async with serving(model, tokenizer) as engine:
        free = await generate(Sample("p", [5, 6, 7], seed=3), SAMPLING, engine)
        stop = free.response[9:11]  # ends with the token that follows the cut
        sampling = replace(SAMPLING, stop=(stop,))
        whole = await generate(Sample("p", [5, 6, 7], seed=3), sampling, engine)
        resumable = ResumableEngine(engine, [], budget=10)
        if len(whole.response_ids) > 10:
            with pytest.raises(CutOffError):
                await generate(Sample("p", [5, 6, 7], seed=3), sampling, resumable)
            again = ResumableEngine(engine, resumable.transcript())
            pieced = await generate(Sample("p", [5, 6, 7], seed=3), sampling, again)
            assert pieced.response == whole.response
            assert pieced.status == whole.status == "completed"
        else:  # the stop string stands earlier in the text, too
            assert whole.response.endswith(stop)


async def test_abort_gives_back_what_is_there(model: Any, tokenizer: Any) -> None:
    """Running, waiting and finished sessions: all come back, and the engine serves on."""
    async with serving(model, tokenizer) as engine:

        async def one(seed: int) -> Generation:
            async with engine.open(seed) as session:
                sessions.append(session)
                return await session.generate([5, 6, seed % 90 + 3], replace(SAMPLING, max_new_tokens=100))

        sessions: list[Session] = []
        tasks = [asyncio.create_task(one(seed)) for seed in range(10)]
        while engine.stats()["generated_tokens"] < 20:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0.001)
        await asyncio.gather(*(session.abort() for session in sessions))
        results = await asyncio.gather(*tasks)
        assert {result.finish_reason for result in results} <= {"abort", "length"}
        assert any(result.finish_reason == "abort" and result.token_ids for result in results)
        assert all(len(r.token_ids) == len(r.logprobs) == len(r.policy_versions) for r in results)
        async with engine.open(1) as session:
            assert len((await session.generate([5], SAMPLING)).token_ids) == 40
