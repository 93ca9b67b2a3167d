"""Every engine reports in the same way how a generation ended: those of jobs and those that tests use.

All of them draw the same tokens: their model goes from each token to the next one of its vocabulary.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from rljob.types import Engine, Generation, SamplingParams
from rljob_trainer.inference.sglang.engine import SglangEngine
from rljob_trainer.inference.torch_engine import TorchEngine, TorchEngineOptions
from rljob_trainer.rollout.resume import ResumableEngine

from trainer.tests.rollout.scripted import ScriptedEngine

from .conftest import TextTokenizer, make_config, make_model
from .contract import check_generation, end_of
from .plain_engine.engine import PlainEngine

TEXTS = ["<pad>", "<eos>", "<unk>", "<", "sea", "rch", ">", "It", " is", " five", ".", "</", "se", "arch>\n", "<|end|>",
         "a", "b", "c", "</tool", "_call>", "<eot>", "x", "y", "z"]  # fmt: skip
VOCABULARY = [*TEXTS, *(f"w{number}" for number in range(len(TEXTS), 64))]
DOCUMENT_END, TURN_END, CONTEXT = 1, VOCABULARY.index("<|end|>"), 40
EOS = (DOCUMENT_END, TURN_END)
START = VOCABULARY.index("It") - 1
"""The prompt's last token: the model draws "It", " is", " five" …"""


class Texts(TextTokenizer):
    eos_token_id: int | None = DOCUMENT_END


def successors(model: Any) -> Any:
    """`model` made such that each token is followed by the next of the vocabulary."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        model.get_input_embeddings().weight.copy_(torch.eye(64))
        model.get_output_embeddings().weight.copy_(torch.roll(torch.eye(64), 1, dims=0) * 10)
    return model


@asynccontextmanager
async def torch_engine() -> AsyncIterator[Engine]:
    config = make_config(vocab_size=64, hidden_size=64, num_hidden_layers=1, tie_word_embeddings=False)
    model = successors(make_model(config))
    engine = TorchEngine(config, Texts(VOCABULARY), CONTEXT, TorchEngineOptions(slots=2), eos_ids=EOS)
    try:
        await engine.load_weights(dict(model.named_parameters()), version=1)
        yield engine
    finally:
        engine.shutdown()


class Upstream:
    """SGLang as it decides where a request ends and says so: the limit comes first, then tokens, then strings, and
    the token that ends a request is among its tokens."""

    def __init__(self, **arguments: Any) -> None:
        self.tokenizer_manager = self
        self.tokenizer = Texts(VOCABULARY)

    async def flush_cache(self) -> bool:
        return True

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        return

    def shutdown(self) -> None:
        return

    async def async_generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], return_logprob: bool, rid: str
    ) -> dict[str, Any]:
        ids: list[int] = []
        while True:
            ids.append(((ids or input_ids)[-1] + 1) % 64)
            if reason := self._reason(ids, sampling_params):
                break
        return {
            "meta_info": {
                "output_token_logprobs": [(-0.5, token, None) for token in ids],
                "completion_tokens": len(ids),
                "finish_reason": reason,
            }
        }

    def _reason(self, ids: list[int], params: Mapping[str, Any]) -> dict[str, Any] | None:
        if len(ids) >= params["max_new_tokens"]:
            return {"type": "length", "length": params["max_new_tokens"]}
        # Its own tokenizer and config know of the first alone; it may know of others (`<|eom_id|>`).
        if not params["ignore_eos"] and ids[-1] in {DOCUMENT_END, *params.get("stop_token_ids", ())}:
            return {"type": "stop", "matched": ids[-1]}
        text = self.tokenizer.decode(ids)
        found = [stop for stop in params.get("stop", ()) if stop in text]
        return {"type": "stop", "matched": found[0]} if found else None


class Agreed(SglangEngine):
    """Takes what it serves on trust."""

    async def _verify(self, table: Any, wanted: str) -> str:
        return wanted


@asynccontextmanager
async def sglang_engine() -> AsyncIterator[Engine]:
    engine = Agreed(Texts(VOCABULARY), CONTEXT, {}, vocab_size=64, eos_ids=EOS, make=Upstream)
    await engine.begin_update()
    await engine.finish_update(1, "digest", {})
    yield engine


def drawn(last: int) -> list[int]:
    return [(last + 1 + step) % 64 for step in range(64)]


@asynccontextmanager
async def scripted_engine() -> AsyncIterator[Engine]:
    yield ScriptedEngine([drawn(START)], Texts(VOCABULARY), CONTEXT, EOS)


@asynccontextmanager
async def resumed_engine() -> AsyncIterator[Engine]:
    yield ResumableEngine(ScriptedEngine([drawn(START)], Texts(VOCABULARY), CONTEXT, EOS), [])


@asynccontextmanager
async def plain_engine() -> AsyncIterator[Engine]:
    config = make_config(vocab_size=64, hidden_size=64, num_hidden_layers=1, tie_word_embeddings=False)
    model = successors(make_model(config))
    engine = PlainEngine(model, Texts(VOCABULARY), CONTEXT, EOS)
    await engine.load_weights(dict(model.named_parameters()), version=1)
    yield engine


ENGINES = {
    "torch": torch_engine,
    "sglang": sglang_engine,
    "scripted": scripted_engine,
    "resumable": resumed_engine,
    "plain": plain_engine,
}


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[Engine]:
    return ENGINES[request.param]()


def at(text: str) -> int:
    """How many tokens are drawn up to and with that one."""
    return VOCABULARY.index(text) - START


CASES = {
    "an end-of-sequence token": (SamplingParams(max_new_tokens=30), at("<|end|>"), "stop", None),
    "at its last allowed token": (SamplingParams(max_new_tokens=at("<|end|>")), at("<|end|>"), "stop", None),
    "one token before": (SamplingParams(max_new_tokens=at("<|end|>") - 1), at("<|end|>") - 1, "length", None),
    "the limit": (SamplingParams(max_new_tokens=3), 3, "length", None),
    "a stop string": (SamplingParams(max_new_tokens=30, stop=("five",)), at(" five"), "stop", "five"),
    "over tokens, within one": (
        SamplingParams(max_new_tokens=30, stop=("</search>",)),
        at("arch>\n"),
        "stop",
        "</search>",
    ),
    "completed by the last allowed token": (
        SamplingParams(max_new_tokens=at("arch>\n"), stop=("no", "</search>")),
        at("arch>\n"),
        "stop",
        "</search>",
    ),
    "a stop string that is an end token's text": (
        SamplingParams(max_new_tokens=30, stop=("<|end|>",)),
        at("<|end|>"),
        "stop",
        None,
    ),
    "a token of the job's own": (
        SamplingParams(max_new_tokens=30, stop_ids=(VOCABULARY.index("."),)),
        at("."),
        "stop",
        None,
    ),
    "both, at the limit": (
        SamplingParams(max_new_tokens=at("."), stop_ids=(VOCABULARY.index("."),), stop=("five.",)),
        at("."),
        "stop",
        None,
    ),
    "no token": (
        SamplingParams(max_new_tokens=at("c"), ignore_eos=True, stop_ids=(VOCABULARY.index("."),)),
        at("c"),
        "length",
        None,
    ),
    "an end token's text, where tokens end nothing": (
        SamplingParams(max_new_tokens=30, ignore_eos=True, stop=("<|end|>",)),
        at("<|end|>"),
        "stop",
        "<|end|>",
    ),
    "the context": (SamplingParams(max_new_tokens=60, ignore_eos=True), CONTEXT - 2, "length", None),
}


@pytest.mark.parametrize("case", list(CASES))
async def test_engines_tell_alike_what_ended_a_generation(
    engine: AbstractAsyncContextManager[Engine], case: str
) -> None:
    sampling, count, reason, stop = CASES[case]
    sampling = replace(sampling, temperature=0.0)
    async with engine as running, running.open(0) as session:
        generation = await session.generate([3, START], sampling)
    ids = drawn(START)[:count]
    assert (generation.token_ids, generation.finish_reason, generation.stop) == (ids, reason, stop)
    by_token = reason == "stop" and stop is None
    assert generation.end_id == (ids[-1] if by_token else None)
    assert generation.text == "".join(VOCABULARY[i] for i in (ids[:-1] if by_token else ids))
    check_generation(generation, sampling, Texts(VOCABULARY), EOS)
    assert end_of(drawn(START), sampling, CONTEXT - 2, Texts(VOCABULARY), EOS) == (ids, reason, stop)


async def test_a_prompt_without_room_gives_nothing(engine: AbstractAsyncContextManager[Engine]) -> None:
    async with engine as running, running.open(0) as session:
        generation = await session.generate([3] * CONTEXT, SamplingParams(max_new_tokens=5))
    assert generation == Generation([], [], [], "length")
    assert generation.end_id is None


async def test_an_end_token_that_the_engine_alone_knows_is_no_text() -> None:
    """SGLang ends requests at tokens of its own, such as Llama's `<|eom_id|>`."""

    class Knowing(Upstream):
        def _reason(self, ids: list[int], params: Mapping[str, Any]) -> dict[str, Any] | None:
            return {"type": "stop", "matched": ids[-1]} if VOCABULARY[ids[-1]] == "." else super()._reason(ids, params)

    engine = Agreed(Texts(VOCABULARY), CONTEXT, {}, vocab_size=64, eos_ids=EOS, make=Knowing)
    await engine.begin_update()
    await engine.finish_update(1, "digest", {})
    async with engine.open(0) as session:
        generation = await asyncio.wait_for(session.generate([START], SamplingParams(max_new_tokens=30)), 10)
    assert (generation.text, generation.end_id) == ("It is five", VOCABULARY.index("."))
