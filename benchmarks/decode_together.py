"""How long the texts of a rollout's responses take when they end together: as one batch ÷ one by one.

512 responses of 512 tokens, a byte-level BPE vocabulary of 30,000. The GPU waits meanwhile (colocated), so the ratio
says what is left of the wait. Both take turns in one process; medians of five.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from typing import Any

import numpy as np
from rljob_trainer.inference.sglang.decoding import Decoder
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

SAMPLES, TOKENS, VOCABULARY, TURNS = 512, 512, 30_000, 5
GOAL = 0.8


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with tokens of two to seven characters."""
    draw = random.Random(0)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = dict.fromkeys(alphabet)
    while len(tokens) < VOCABULARY:
        tokens["".join(draw.choices(alphabet, k=draw.randrange(2, 8)))] = None
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend)
    made.clean_up_tokenization_spaces = False
    return made


async def compare() -> tuple[float, float]:
    """Seconds one by one and together."""
    made, draw = tokenizer(), random.Random(1)
    rows = [[draw.randrange(VOCABULARY) for _ in range(TOKENS)] for _ in range(SAMPLES)]
    arrays: list[Any] = [np.asarray(row) for row in rows]
    decoder = Decoder(made)
    alone, together = [], []
    for _ in range(TURNS):
        began = time.perf_counter()
        wanted = [made.decode(row, skip_special_tokens=False) for row in arrays]
        middle = time.perf_counter()
        texts = await asyncio.gather(*(decoder.text(row) for row in rows))
        together.append(time.perf_counter() - middle)
        alone.append(middle - began)
        if texts != wanted:
            raise RuntimeError("the texts differ")
    return statistics.median(alone), statistics.median(together)


def main() -> int:
    """Print the lines. Exit code 1 when the goal is missed."""
    alone, together = asyncio.run(compare())
    ratio = together / alone
    for name, value, unit, goal, met in (
        (f"text of {SAMPLES} x {TOKENS} tokens, one by one", alone, "s", None, None),
        (f"text of {SAMPLES} x {TOKENS} tokens, together", together, "s", None, None),
        ("text of a rollout: together / one by one", ratio, "ratio", f"<= {GOAL}", ratio <= GOAL),
    ):
        print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "met": met}), flush=True)
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
