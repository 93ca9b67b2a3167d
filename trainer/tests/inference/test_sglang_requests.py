"""SGLang's requests, answers and arguments, without SGLang."""

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rljob.types import EngineError, SamplingParams
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import RLJob
from rljob_trainer.inference.sglang.arguments import check_arguments, server_arguments
from rljob_trainer.inference.sglang.engine import YOUNG_OBJECTS, SglangEngine
from rljob_trainer.inference.sglang.requests import Part, join, read_answer, sampling_request, settled, stop_end
from rljob_trainer.inference.sglang.served import place_of, read_told, report_served, served_name, table_of, whole
from rljob_trainer.weights.fingerprint import differing, entries

from .conftest import TextTokenizer, plain_tokens

KNOWN = frozenset({"attention_backend", "mem_fraction_static", "cuda_graph_max_bs"})


def spec_of(**rollout: Any) -> Any:
    spec = {"model": {"path": "m"}, "rollout": {"engine": "sglang"} | rollout, "placement": {"type": "colocated"}}
    manifest = {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": "x"}, "spec": spec}
    return RLJob.model_validate(manifest).spec


def test_a_wrong_argument_is_refused_with_the_right_one() -> None:
    with pytest.raises(UserError, match=r"engineArgs.atention_backend: SGLang has no such argument") as caught:
        check_arguments({"atention_backend": "triton"}, KNOWN)
    assert "did you mean attention_backend?" in str(caught.value)
    with pytest.raises(UserError, match=r"engineArgs.tp_size: is decided by spec.rollout.gpusPerEngine"):
        check_arguments({"tp_size": 2}, KNOWN)
    check_arguments({"attention_backend": "triton"}, KNOWN)
    check_arguments({"anything": 1}, None)


def test_the_users_arguments_win() -> None:
    spec = spec_of(gpusPerEngine=2, engineArgs={"mem_fraction_static": 0.3, "cuda_graph_max_bs": 64})
    arguments = server_arguments(spec, "/folder", 100, 1)
    assert (arguments["tp_size"], arguments["mem_fraction_static"], arguments["cuda_graph_max_bs"]) == (2, 0.3, 64)
    assert arguments["enable_memory_saver"]
    assert arguments["load_format"] == "dummy"
    assert arguments["context_length"] >= 100


GRAPH = "cuda_graph_max_bs_decode"


@pytest.mark.parametrize(
    ("rollout", "placement", "graph"),
    [
        ({"batchSize": 16, "nSamplesPerPrompt": 16}, "colocated", None),  # SGLang's own choice is large enough
        ({"batchSize": 32, "nSamplesPerPrompt": 16}, "colocated", 512),
        ({"batchSize": 32, "nSamplesPerPrompt": 16}, "async", 1024),
        ({"batchSize": 32, "nSamplesPerPrompt": 16, "replicas": 2}, "async", 512),
        ({"batchSize": 32, "nSamplesPerPrompt": 16, "overSamplingBatchSize": 48}, "colocated", 768),
        ({"batchSize": 1024, "nSamplesPerPrompt": 8}, "colocated", 1024),
        ({"batchSize": 32, "nSamplesPerPrompt": 16, "engineArgs": {"disable_cuda_graph": True}}, "colocated", None),
    ],
)
def test_graphs_hold_what_the_job_has_under_way(rollout: dict[str, Any], placement: str, graph: int | None) -> None:
    spec = spec_of(**rollout)
    spec = spec.model_copy(update={"placement": spec.placement.model_copy(update={"type": placement})})
    assert server_arguments(spec, "/folder", 100, 0, KNOWN | {GRAPH}).get(GRAPH) == graph


def test_graphs_are_left_to_an_sglang_that_calls_them_otherwise() -> None:
    assert GRAPH not in server_arguments(spec_of(batchSize=64, nSamplesPerPrompt=16), "/folder", 100, 0, KNOWN)


def test_sampling_becomes_a_request() -> None:
    request = sampling_request(SamplingParams(temperature=0.7, top_p=0.9, top_k=5, stop=("</a>",)), 33, 2**40)
    assert (request["max_new_tokens"], request["stop"], request["no_stop_trim"]) == (33, ["</a>"], True)
    assert 0 <= request["sampling_seed"] < 2**31
    assert "sampling_seed" not in sampling_request(SamplingParams(), 1, None)
    assert "stop_token_ids" not in request
    assert sampling_request(SamplingParams(stop_ids=(9, 2)), 1, None, {2, 5})["stop_token_ids"] == [2, 5, 9]


def answer(ids: list[int], kind: str = "stop", matched: Any = None, count: int | None = None) -> dict[str, Any]:
    drawn = [(-0.5 * number, token, None) for number, token in enumerate(ids)]
    reason = {"type": kind} | ({} if matched is None else {"matched": matched})
    return {
        "meta_info": {"output_token_logprobs": drawn, "finish_reason": reason, "completion_tokens": count or len(ids)}
    }


def test_answers_are_token_ids_with_log_probs() -> None:
    part = read_answer(answer([5, 6, 1], matched=1))
    assert part == Part([5, 6, 1], [0.0, -0.5, -1.0], "stop", None)
    assert read_answer(answer([5], matched="</a>")).stop == "</a>"
    with pytest.raises(ValueError, match="3 tokens and gave 2"):
        read_answer(answer([1, 2], count=3))
    with pytest.raises(ValueError, match="unknown"):
        read_answer(answer([1], kind="melted"))


def test_a_turn_that_ends_with_its_last_allowed_token_has_ended(tokenizer: TextTokenizer) -> None:
    text = tokenizer.decode([4, 5])

    def told(ids: list[int], **sampling: Any) -> tuple[str, str | None]:
        turn = settled(Part(ids, [0.0] * len(ids), "length"), SamplingParams(**sampling), {1}, tokenizer)
        assert turn.token_ids == ids
        return turn.finish_reason, turn.stop

    assert told([4, 1]) == ("stop", None)
    assert told([4, 1], ignore_eos=True) == ("length", None)
    assert told([4, 7], stop_ids=(7,)) == ("stop", None)
    assert told([3, 4, 5], stop=("no", text)) == ("stop", text)
    assert told([4, 5, 6], stop=("no",)) == ("length", None)
    assert told([]) == ("length", None)


def test_a_stop_string_across_an_interruption_still_ends_the_turn(tokenizer: TextTokenizer) -> None:
    ids = list(range(3, 11))
    stop = tokenizer.decode(ids[3:5])
    assert stop_end(ids, [stop], tokenizer) == (5, stop)
    parts = [Part(ids[:4], [0.0] * 4, "abort"), Part(ids[4:], [0.0] * 4, "length")]
    assert join(parts, [stop], tokenizer) == Part(ids[:5], [0.0] * 5, "stop", stop)
    assert join(parts, [], tokenizer).token_ids == ids
    assert stop_end(ids, ["nowhere"], tokenizer) is None


class Fused(torch.nn.Module):
    """Two modules as SGLang fuses them, and an embedding padded to a multiple of four rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(8, 4)
        self.qkv_proj = torch.nn.Linear(4, 8, bias=True)
        self.qkv_proj.output_partition_sizes = [4, 2, 2]  # type: ignore[assignment]


def test_served_tensors_are_told_under_the_senders_names() -> None:
    model = Fused()
    weight, embedding = model.qkv_proj.weight.data, model.embed_tokens.weight.data
    sent = {
        "q_proj.weight": weight[:4],
        "k_proj.weight": weight[4:6],
        "v_proj.weight": weight[6:],
        "v_proj.bias": model.qkv_proj.bias.data[6:],
        "embed_tokens.weight": embedding[:6],
    }
    shapes = {served_name(name): tensor.shape for name, tensor in sent.items()}
    served = whole([table_of(model, {name: list(shape) for name, shape in shapes.items()})])
    wanted = {served_name(name): value for name, value in entries(sent).items()}
    assert differing(wanted, served) == []
    model.qkv_proj.weight.data[4, 0] += 1
    changed = whole([table_of(model, {name: list(shape) for name, shape in shapes.items()})])
    assert differing(wanted, changed) == [served_name("k_proj.weight")]


class Shard(torch.nn.Module):
    """What one of four ranks holds of a model with eight heads of queries and two of keys and values, two wide each:
    rows of q, k (two ranks the same) and the embedding (filled up), columns of o, all of the norm."""

    def __init__(self, sent: dict[str, torch.Tensor], rank: int) -> None:
        super().__init__()
        q, k, o, table = (sent[f"{name}.weight"] for name in ("q_proj", "k_proj", "o_proj", "embed_tokens"))
        key = rank // 2 * 2
        own = [q[rank * 4 : rank * 4 + 4], k[key : key + 2], k[key : key + 2]]
        self.qkv_proj = torch.nn.Linear(6, 8, bias=False, dtype=torch.bfloat16)
        self.qkv_proj.weight.data = torch.cat(own).clone()
        self.qkv_proj.output_partition_sizes = [4, 2, 2]  # type: ignore[assignment]
        self.o_proj = torch.nn.Linear(4, 6, bias=False, dtype=torch.bfloat16)
        self.o_proj.weight.data = o[:, rank * 4 : rank * 4 + 4].clone()
        self.norm = torch.nn.RMSNorm(6, dtype=torch.bfloat16)
        self.norm.weight.data = sent["norm.weight"].clone()
        rows = torch.zeros(16, 6, dtype=torch.bfloat16)
        rows[:13] = table
        self.embed_tokens = torch.nn.Embedding.from_pretrained(rows[rank * 4 : rank * 4 + 4].clone())


def test_what_several_gpus_serve_is_compared_with_the_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"q_proj.weight": (16, 6), "k_proj.weight": (4, 6), "o_proj.weight": (6, 16), "norm.weight": (6,),
              "embed_tokens.weight": (13, 6)}  # fmt: skip
    sent = {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in shapes.items()}
    wanted = {served_name(name): value for name, value in entries(sent).items()}
    asked = {served_name(name): list(shape) for name, shape in shapes.items()}
    shards = [Shard(sent, rank) for rank in range(4)]

    def served() -> dict[str, Any]:
        written = [json.dumps(table_of(shard, asked, rank, 4)) for rank, shard in enumerate(shards)]
        return whole([read_told(text) for text in written])

    assert differing(wanted, served()) == []
    shards[2].o_proj.weight.data[5, 3] += 1
    shards[3].embed_tokens.weight.data[0, 0] += 1
    shards[3].embed_tokens.weight.data[1:] += 1  # fills up: nobody's word
    assert differing(wanted, served()) == ["embed_tokens.weight", "o_proj.weight"]
    shards[3].qkv_proj.weight.data[4, 0] += 1
    with pytest.raises(ValueError, match=r"serve different qkv_proj\.weight#1"):
        served()


def test_ranks_of_one_engine_tell_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question, model, ranks = tmp_path / "served.json", Fused(), iter([0, 1])
    question.write_text(json.dumps({"embed_tokens.weight": [12, 4]}))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: next(ranks))
    replace, begun = Path.replace, []

    def while_the_other_tells(self: Path, target: Path) -> Path:
        if not begun:
            begun.append(target)
            report_served(model, [(str(question), None)])
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", while_the_other_tells)
    report_served(model, [(str(question), None)])
    starts = [read_told(Path(f"{question}.{rank}").read_text())["embed_tokens.weight"][2] for rank in range(2)]
    assert starts == [(0, 0), (8, 0)]


class Experts(torch.nn.Module):
    """What one of two ranks holds of a layer's three experts: half of each one's gate and up rows, of its down columns,
    and all of the router."""

    def __init__(self, sent: dict[str, torch.Tensor], rank: int) -> None:
        super().__init__()
        half = slice(rank * 2, rank * 2 + 2)
        names = [f"mlp.experts.{expert}" for expert in range(3)]
        gate_up = [torch.cat([sent[f"{n}.{k}_proj.weight"][half] for k in ("gate", "up")]) for n in names]
        down = [sent[f"{name}.down_proj.weight"][:, half] for name in names]
        experts = torch.nn.Module()
        experts.w13_weight = torch.nn.Parameter(torch.stack(gate_up))
        experts.w2_weight = torch.nn.Parameter(torch.stack(down))
        self.mlp = torch.nn.Module()
        self.mlp.experts = experts
        self.mlp.gate = torch.nn.Linear(6, 3, bias=False)
        self.mlp.gate.weight.data = sent["mlp.gate.weight"].clone()


def test_each_expert_is_compared_with_what_was_sent() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"gate_proj": (4, 6), "up_proj": (4, 6), "down_proj": (6, 4)}
    sent = {
        f"mlp.experts.{expert}.{kind}.weight": torch.randn(shape, generator=draw).bfloat16()
        for expert in range(3)
        for kind, shape in shapes.items()
    } | {"mlp.gate.weight": torch.randn(3, 6, generator=draw).bfloat16()}
    asked = {served_name(name): list(tensor.shape) for name, tensor in sent.items()}
    ranks = [Experts(sent, rank) for rank in range(2)]

    def wrong() -> list[str]:
        served = whole([table_of(part, asked, rank, 2) for rank, part in enumerate(ranks)])
        return differing({served_name(name): value for name, value in entries(sent).items()}, served)

    assert wrong() == []
    ranks[1].mlp.experts.w13_weight.data[2, 3, 0] += 1  # type: ignore[union-attr, operator]
    ranks[0].mlp.experts.w2_weight.data[0, 0, 1] += 1  # type: ignore[union-attr, operator]
    assert wrong() == ["mlp.experts.0.down_proj.weight", "mlp.experts.2.up_proj.weight"]


def test_parts_that_belong_to_no_such_tensor() -> None:
    assert place_of([4, 6], [16, 6], 3, 4) == ([12, 0], 4)
    assert place_of([4, 6], [13, 6], 3, 4) == ([12, 0], 1)
    assert place_of([4, 6], [4, 6], 3, 4) == ([0, 0], 4)
    assert place_of([2, 6], [4, 6], 3, 4) == ([2, 0], 2)
    for part, of in (([4, 6], [17, 6]), ([4, 3], [16, 6]), ([16, 2], [16, 6]), ([4], [4, 6])):
        assert place_of(part, of, 0, 4) is None


@pytest.fixture(autouse=True)
def own_threshold() -> Iterator[None]:
    """An engine's process has it for itself; this one does not."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


class Manager:
    """SGLang's tokenizer manager as far as the engine uses it; requests wait until they are told to go on."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[str]] = []
        self.frozen = 0

    async def freeze_gc(self) -> None:
        self.frozen += 1

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_result("abort")

    async def flush_cache(self) -> bool:
        return True


class Script:
    """An engine that gives one more token (and waits) until it is left alone."""

    def __init__(self, **arguments: Any) -> None:
        self.tokenizer_manager = Manager()
        self.asked: list[list[int]] = []

    async def async_generate(
        self, input_ids: list[int], sampling_params: Any, return_logprob: bool, rid: str
    ) -> dict[str, Any]:
        self.asked.append(list(input_ids))
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.tokenizer_manager.waiting.append(future)
        kind = await future
        made = [10] if kind == "abort" else [11] * sampling_params["max_new_tokens"]
        return answer(made, kind)


class Agreed(SglangEngine):
    """Serves what it was sent, whatever that is."""

    async def _verify(self, table: Any, wanted: str) -> str:
        return wanted


async def scripted(version: int) -> tuple[SglangEngine, Script]:
    """An engine with its first weights, and the script it goes by."""
    script = Script()
    engine = Agreed(TextTokenizer(plain_tokens(97)), 64, {}, vocab_size=97, make=lambda **arguments: script)
    await engine.begin_update()
    await engine.finish_update(version, "first", {})
    return engine, script


async def test_new_weights_interrupt_a_turn_and_it_goes_on() -> None:
    engine, script = await scripted(version=1)

    async def turn() -> Any:
        async with engine.open(0) as session:
            return await session.generate([4, 5], SamplingParams(max_new_tokens=4))

    task = asyncio.create_task(turn())
    await asyncio.sleep(0.01)
    await engine.begin_update()
    await asyncio.sleep(0.01)
    assert not task.done()
    assert engine.version is None
    await engine.finish_update(2, "two", {})
    await asyncio.sleep(0.01)
    script.tokenizer_manager.waiting[-1].set_result("length")
    generation = await task
    assert generation.token_ids == [10, 11, 11, 11]
    assert generation.policy_versions == [1, 2, 2, 2]
    assert generation.finish_reason == "length"
    assert script.asked == [[4, 5], [4, 5, 10]]
    assert engine.stats()["interrupted"] == 1.0
    assert script.tokenizer_manager.frozen == 1
    assert gc.get_threshold()[0] == YOUNG_OBJECTS


class Clock:
    """Seconds that have passed beside those that really have."""

    passed = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made, monotonic = Clock(), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + made.passed)
    return made


async def test_seconds_count_while_a_generation_is_under_way(clock: Clock) -> None:
    engine, script = await scripted(version=1)

    def busy() -> int:
        return round(engine.stats()["busy_seconds"] / 100)  # hundreds: what really passes does not count

    async def turn() -> Any:
        async with engine.open(0) as session:
            return await session.generate([4, 5], SamplingParams(max_new_tokens=1))

    clock.passed = 500.0
    tasks = [asyncio.create_task(turn()) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert busy() == 0
    clock.passed = 700.0
    assert busy() == 2
    script.tokenizer_manager.waiting[0].set_result("length")
    await tasks[0]
    clock.passed = 800.0
    assert busy() == 3, "the other is still under way"
    script.tokenizer_manager.waiting[1].set_result("length")
    await tasks[1]
    clock.passed = 2000.0
    assert busy() == 3


async def test_a_silent_engine_is_lost_but_not_while_its_first_requests_compile(clock: Clock) -> None:
    engine, script = await scripted(version=1)
    async with engine.open(0) as session:
        task = asyncio.create_task(session.generate([4, 5], SamplingParams(max_new_tokens=1)))
        await asyncio.sleep(0.01)
        clock.passed = 500.0
        engine.check(120.0)
        script.tokenizer_manager.waiting[-1].set_result("length")
        await task
        clock.passed = 1000.0  # with nothing under way
        task = asyncio.create_task(session.generate([4, 5], SamplingParams(max_new_tokens=1)))
        await asyncio.sleep(0.01)
        clock.passed = 1119.0
        engine.check(120.0)
        clock.passed = 1121.0
        with pytest.raises(EngineError, match="not answered for 121 s"):
            engine.check(120.0)
        task.cancel()


async def test_an_aborted_turn_gives_what_it_has_and_can_be_continued() -> None:
    engine, script = await scripted(version=3)
    async with engine.open(0) as session:
        task = asyncio.create_task(session.generate([4, 5], SamplingParams(max_new_tokens=4)))
        await asyncio.sleep(0.01)
        await session.abort()
        begun = await task
    assert (begun.token_ids, begun.finish_reason) == ([10], "abort")
    async with engine.open(0) as session:
        task = asyncio.create_task(session.generate([4, 5], SamplingParams(max_new_tokens=4), begun))
        await asyncio.sleep(0.01)
        script.tokenizer_manager.waiting[-1].set_result("length")
        whole = await task
    assert (whole.token_ids, whole.finish_reason) == ([10, 11, 11, 11], "length")
    assert whole.policy_versions == [3, 3, 3, 3]
    assert script.asked == [[4, 5], [4, 5, 10]]


async def test_arguments_that_sglang_does_not_take_are_the_users(tokenizer: TextTokenizer) -> None:
    def make(**arguments: Any) -> Any:
        raise ValueError("attention_backend must be one of …")

    with pytest.raises(UserError, match="engineArgs: SGLang does not start with them: attention_backend"):
        SglangEngine(tokenizer, 64, {}, vocab_size=97, make=make)


async def test_a_table_that_is_not_the_digests_is_refused(tokenizer: TextTokenizer) -> None:
    engine = SglangEngine(tokenizer, 64, {}, vocab_size=97, make=Script)
    await engine.begin_update()
    with pytest.raises(EngineError, match="not that of the table"):
        await engine.finish_update(1, "fp1:wrong", {"a": ("float32", (1,), 3)})
    assert engine.version is None


def test_importing_needs_no_sglang() -> None:
    import sys

    import rljob_trainer.inference.sglang.build as build

    assert Path(build.__file__).name == "build.py"
    assert "sglang" not in sys.modules
