"""Tokens per second of the torch engine ÷ those of `transformers.generate`, same model, same machine, in turns.

- ragged: conversations of three turns whose generations differ 4:1 in length. `generate` takes them in batches of as
  many as the engine has slots, padded on the left; each turn lasts until the longest of its batch is done, and the
  next one reads the whole conversation again. The engine also returns log-probabilities, `generate` does not.
- uniform: one batch, equal prompts and lengths.

Only tokens that were asked for count. The engine runs in deterministic mode, its default on CPU.
`--model small|large|both` (small is the quickstart's); `--device cuda` compares on a GPU (bfloat16, throughput mode).
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch
from rljob.types import SamplingParams
from rljob_trainer.inference.torch_engine import TorchEngine, TorchEngineOptions
from transformers import AutoModelForCausalLM, Qwen2Config

VOCABULARY, CONTEXT = 144, 512
GOALS = {"ragged": 3.0, "uniform": 1.3}
SHAPES = {
    "small": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
    "large": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}


class NoText:
    """The benchmark asks for tokens only."""

    eos_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return [ord(character) % VOCABULARY for character in text]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, token_ids))


@dataclass(frozen=True)
class Talk:
    """Turns of (new tokens, how many to generate)."""

    turns: list[tuple[list[int], int]]

    @property
    def tokens(self) -> int:
        return sum(length for _, length in self.turns)


def ragged(count: int, shortest: int) -> list[Talk]:
    """Lengths drawn log-uniformly from shortest … 4·shortest, one per conversation and turn."""
    rng = random.Random(0)

    def turn(first: bool) -> tuple[list[int], int]:
        new = [rng.randrange(VOCABULARY) for _ in range(rng.randint(8, 24) if first else rng.randint(12, 30))]
        return new, round(shortest * 4 ** rng.random())

    return [Talk([turn(number == 0) for number in range(3)]) for _ in range(count)]


def uniform(count: int, length: int) -> list[Talk]:
    rng = random.Random(0)
    return [Talk([([rng.randrange(VOCABULARY) for _ in range(16)], length)]) for _ in range(count)]


async def run_engine(engine: TorchEngine, talks: list[Talk]) -> None:
    async def one(number: int, talk: Talk) -> None:
        async with engine.open(number) as session:
            for new, length in talk.turns:
                result = await session.generate(new, SamplingParams(max_new_tokens=length, ignore_eos=True))
                assert len(result.token_ids) == length

    await asyncio.gather(*(one(number, talk) for number, talk in enumerate(talks)))


@torch.no_grad()
def run_transformers(model: Any, talks: list[Talk], batch: int) -> None:
    for start in range(0, len(talks), batch):
        group = talks[start : start + batch]
        texts: list[list[int]] = [[] for _ in group]
        for turn in range(len(group[0].turns)):
            for text, talk in zip(texts, group, strict=True):
                text += talk.turns[turn][0]
            width = max(map(len, texts))
            ids = torch.tensor([[0] * (width - len(text)) + text for text in texts], device=model.device)
            mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts], device=model.device)
            longest = max(talk.turns[turn][1] for talk in group)
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=longest,
                pad_token_id=0,
            )
            for text, talk, row in zip(texts, group, out[:, width:].tolist(), strict=True):
                text += row[: talk.turns[turn][1]]


async def compare(
    ours: Callable[[], Awaitable[None]], theirs: Callable[[], None], tokens: int, rounds: int
) -> tuple[float, float]:
    """Tokens per second of both, each the best of `rounds`: noise only ever slows. The two take turns."""
    await ours()
    theirs()
    fastest = [float("inf"), float("inf")]
    for _ in range(rounds):
        start = time.perf_counter()
        await ours()
        middle = time.perf_counter()
        theirs()
        end = time.perf_counter()
        fastest = [min(fastest[0], middle - start), min(fastest[1], end - middle)]
    return tokens / fastest[0], tokens / fastest[1]


async def measure(name: str, device: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=SHAPES[name]["num_attention_heads"],
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        **SHAPES[name],
    )
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to(device)
    options = TorchEngineOptions(slots=batch, deterministic=device == "cpu", device=device, dtype=dtype)
    engine = TorchEngine(config, NoText(), CONTEXT, options)
    await engine.load_weights(dict(model.named_parameters()), version=1)
    lines = []
    try:
        many = (8 if name == "small" else 2) * batch
        for kind, talks in (("ragged", ragged(many, 16)), ("uniform", uniform(batch, 96))):
            total = sum(talk.tokens for talk in talks)
            ours, theirs = await compare(
                lambda talks=talks: run_engine(engine, talks),  # type: ignore[misc]
                lambda talks=talks: run_transformers(model, talks, batch),  # type: ignore[misc]
                total,
                rounds,
            )
            ratio = ours / theirs
            print(f"{name} {kind}: engine {ours:.0f}, transformers {theirs:.0f} tokens/s", file=sys.stderr)
            suffix = "" if (name, device) == ("small", "cpu") else f"_{name}_{device}"
            goal = GOALS[kind] if name == "small" else None
            lines.append(
                {
                    "name": f"engine_throughput_{kind}{suffix}",
                    "value": round(ratio, 2),
                    "unit": "× transformers.generate",
                    "goal": goal,
                    "met": None if goal is None else ratio >= goal,
                    "tokens_per_second": round(ours, 1),
                    "transformers_tokens_per_second": round(theirs, 1),
                }
            )
    finally:
        engine.shutdown()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=[*SHAPES, "both"], default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in SHAPES if arguments.model == "both" else [arguments.model]:
        for line in asyncio.run(measure(name, arguments.device, arguments.batch, arguments.rounds)):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
