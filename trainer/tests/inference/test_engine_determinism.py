"""A sample's tokens and log-probabilities are a function of its own seed and tokens: bit for bit."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from rljob.types import SamplingParams
from rljob_trainer.inference.torch_engine import TorchEngine, TorchEngineOptions
from rljob_trainer.inference.torch_engine.attention import Pages, attend, mask_table, plan, value_width
from rljob_trainer.inference.torch_engine.linear import Rows, choose_rows, row_counts

Trace = list[tuple[list[int], list[float]]]


@dataclass(frozen=True)
class Talk:
    """One sample's conversation."""

    seed: int
    turns: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    temperature: float
    top_p: float


def talks(count: int) -> list[Talk]:
    rng = random.Random(7)

    def one(seed: int) -> Talk:
        turns = tuple(
            tuple(rng.randrange(3, 97) for _ in range(rng.choice((1, 5, 16, 23, 40)))) for _ in range(rng.randint(1, 3))
        )
        return Talk(
            seed, turns, tuple(rng.randint(1, 25) for _ in turns), rng.choice((0.0, 0.8, 1.0)), rng.choice((1.0, 0.9))
        )

    return [one(seed) for seed in range(count)]


@asynccontextmanager
async def serving(model: Any, tokenizer: Any, rows: Rows | None = None, **options: Any) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(model.config, tokenizer, 256, TorchEngineOptions(**options), rows=rows)
    try:
        await engine.load_weights(dict(model.named_parameters()), version=1)
        yield engine
    finally:
        engine.shutdown()


async def run(engine: TorchEngine, talk: Talk, delay: random.Random | None = None) -> Trace:
    trace: Trace = []
    async with engine.open(talk.seed) as session:
        for turn, length in zip(talk.turns, talk.lengths, strict=True):
            if delay is not None:
                await asyncio.sleep(delay.random() * 0.02)
            sampling = SamplingParams(talk.temperature, talk.top_p, max_new_tokens=length, ignore_eos=True)
            result = await session.generate(turn, sampling)
            trace.append((result.token_ids, result.logprobs))
    return trace


@pytest.fixture(scope="module")
def alone(model: Any, tokenizer: Any) -> list[Trace]:
    """Every conversation on its own."""

    async def one_by_one() -> list[Trace]:
        async with serving(model, tokenizer, slots=40) as engine:
            return [await run(engine, talk) for talk in talks(40)]

    return asyncio.run(one_by_one())


async def test_together_as_alone(model: Any, tokenizer: Any, alone: list[Trace]) -> None:
    async with serving(model, tokenizer, slots=40) as engine:
        assert list(await asyncio.gather(*(run(engine, talk) for talk in talks(40)))) == alone


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_arrival_order_and_tool_latency_do_not_matter(
    model: Any, tokenizer: Any, alone: list[Trace], seed: int
) -> None:
    rng = random.Random(seed)
    order = list(range(40))
    rng.shuffle(order)
    all_talks = talks(40)
    async with serving(model, tokenizer, slots=40) as engine:
        results = await asyncio.gather(*(run(engine, all_talks[number], rng) for number in order))
    assert dict(zip(order, results, strict=True)) == dict(enumerate(alone))


@pytest.mark.parametrize("slots", [1, 3, 32, 100])
async def test_the_number_of_slots_does_not_matter(model: Any, tokenizer: Any, alone: list[Trace], slots: int) -> None:
    """Fewer slots than sessions: caches are set aside between turns and brought back into other slots."""
    rng = random.Random(slots)
    async with serving(model, tokenizer, slots=slots) as engine:
        results = await asyncio.gather(*(run(engine, talk, rng) for talk in talks(40)))
    assert results == alone


async def test_several_engines_are_as_one(model: Any, tokenizer: Any, alone: list[Trace]) -> None:
    all_talks = talks(40)
    async with serving(model, tokenizer, slots=16) as first, serving(model, tokenizer, slots=16) as second:
        results = await asyncio.gather(*(run((first, second)[i % 2], talk) for i, talk in enumerate(all_talks)))
    assert results == alone


@pytest.mark.parametrize("tile", [1, 32])
async def test_tiles_are_independent_too(model: Any, tokenizer: Any, tile: int) -> None:
    """Where a BLAS gives other bits for other row counts, rows are multiplied in tiles."""
    some = talks(12)
    async with serving(model, tokenizer, rows=Rows(tile), slots=40) as engine:
        single = [await run(engine, talk) for talk in some]
        rng = random.Random(tile)
        assert list(await asyncio.gather(*(run(engine, talk, rng) for talk in some))) == single


async def test_other_seeds_draw_other_tokens(model: Any, tokenizer: Any) -> None:
    sampling = SamplingParams(max_new_tokens=30, ignore_eos=True)
    async with serving(model, tokenizer) as engine:

        async def one(seed: int) -> tuple[int, ...]:
            async with engine.open(seed) as session:
                return tuple((await session.generate([5, 6], sampling)).token_ids)

        drawn = [await one(seed) for seed in (1, 2, 3, 2**62, 1)]
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[-1]


async def test_a_cancelled_session_leaves_no_trace(model: Any, tokenizer: Any, alone: list[Trace]) -> None:
    all_talks = talks(40)
    async with serving(model, tokenizer, slots=8) as engine:
        doomed = [asyncio.create_task(run(engine, talk)) for talk in all_talks[20:]]
        kept = asyncio.gather(*(run(engine, talk) for talk in all_talks[:20]))
        await asyncio.sleep(0.01)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        assert list(await kept) == alone[:20]
        assert [await run(engine, talk) for talk in all_talks[20:23]] == alone[20:23]
        assert engine.stats()["running"] == engine.stats()["waiting"] == 0


def paged_attention(chosen: list[int], pool: bool, queries: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of some of five sequences whose pages lie scattered in one cache, and what it should be."""
    lengths, page, groups, repeats, d = [70, 5, 128, 33, 64], 32, 2, 3, 24
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(20, groups, d, page, generator=generator),
        torch.randn(20, groups, page, d, generator=generator),
    )
    q = torch.randn(5, groups, repeats * queries, d, generator=generator)
    ids = torch.randperm(19, generator=generator).numpy() + 1
    table = np.zeros((5, 4), dtype=np.int64)
    at = 0
    for i, length in enumerate(lengths):
        used = -(-length // page)
        table[i, :used] = ids[at : at + used]
        at += used
    ends = np.array(lengths)[chosen]
    order = np.argsort(-ends, kind="stable")
    rows = np.array(chosen)[order]
    pages = Pages.of(table[rows], -(-ends[order] // page))
    positions = torch.tensor(ends[order])[:, None] - queries + torch.arange(queries)
    made = plan(pages, positions, groups, repeats, mask_table(page, torch.device("cpu")), 20 if pool else None)
    k, v = (keys, values) if pool else (keys[pages.ids], values[pages.ids])
    out = attend(
        q[rows],
        k,
        torch.cat((v, torch.ones(*v.shape[:3], 1), torch.zeros(*v.shape[:3], value_width(d) - d - 1)), -1),
        made,
        0.2,
    )
    expected = []
    for row, at_positions in zip(rows.tolist(), positions, strict=True):
        whole_k = keys[table[row]].permute(1, 0, 3, 2).reshape(groups, -1, d).repeat_interleave(repeats, 0)
        whole_v = values[table[row]].permute(1, 0, 2, 3).reshape(groups, -1, d).repeat_interleave(repeats, 0)
        mask = torch.arange(whole_k.shape[1]) <= at_positions[:, None]
        wide = q[row].view(groups * repeats, queries, d)
        expected.append(
            torch.nn.functional.scaled_dot_product_attention(wide, whole_k, whole_v, attn_mask=mask, scale=0.2).view_as(
                q[row]
            )
        )
    back = np.argsort(order)
    return out[back], torch.stack(expected)[back]


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("pool", [True, False])
def test_attention_over_pages(pool: bool, queries: int) -> None:
    together, expected = paged_attention([0, 1, 2, 3, 4], pool, queries)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    for chosen in ([0], [1], [4, 2], [3, 0, 1]):
        for where in (True, False):
            assert torch.equal(paged_attention(chosen, where, queries)[0], together[chosen])


def test_row_counts_cover_every_size_in_small_steps() -> None:
    counts = row_counts(1000)
    assert counts[0] == 32
    assert counts[-2] < 1000 <= counts[-1]
    assert all(count % 32 == 0 for count in counts)
    assert all(later <= earlier * 1.25 for earlier, later in pairwise(counts[3:]))


def test_a_product_whose_rows_depend_on_their_number_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """On such a library whole products are not used, and neither are tiles whose rows differ."""
    exact = torch.nn.functional.linear

    def depends_on_count(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return exact(x, weight, bias) + (1e-3 if x.shape[0] > 32 else 0)

    def depends_on_place(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return exact(x, weight, bias) + 1e-3 * torch.arange(x.shape[0])[:, None]

    weights, counts = [torch.zeros(64, 32)], row_counts(128)
    for product, tile in ((depends_on_count, 32), (depends_on_place, 1)):
        monkeypatch.setattr(torch.nn.functional, "linear", product)
        assert choose_rows(weights, counts) == Rows(tile)
