"""A tiny model, its tokenizer, and batches made from a seed."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rljob.types import TrainSample
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 40


@dataclass
class Demonstration:
    """A row of SFT data."""

    input_ids: list[int]
    loss_mask: list[int]
    lengths: list[int] | None = None


def job(**trainer: Any) -> dict[str, Any]:
    """A job with a model of a few thousand parameters; keyword arguments go into `trainer`."""
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {
                "randomInit": {
                    "hiddenSize": 16,
                    "intermediateSize": 24,
                    "numHiddenLayers": 2,
                    "numAttentionHeads": 2,
                    "numKeyValueHeads": 1,
                    "initializerRange": 0.3,
                },
                "tokenizerPath": "tokenizer",
                "dtype": "float32",
            },
            "sft": {"dataset": {"path": "x.jsonl"}, "optimizer": {"lr": 1e-2}},
            "algorithm": {"kl": {"lossCoef": 0.1}, "entropyCoef": 0.01, "epsClipHigh": 0.28},
            "optimizer": {"lr": 1e-2},
            "rollout": {"sampling": {"temperature": 1.0}},
            "trainer": {"backend": "fsdp", "microBatchSize": 4, "rankTimeoutSeconds": 240, **trainer},
        },
    }


def write_tokenizer(directory: Path) -> None:
    """A word-level tokenizer of `VOCABULARY` words."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w0")
    fast.save_pretrained(directory / "tokenizer")


def demonstrations(seed: int, count: int) -> list[Demonstration]:
    """Rows of 2 to 14 ids, some without a trained token."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        size = draw.randint(2, 14)
        rows.append(Demonstration([draw.randrange(VOCABULARY) for _ in range(size)], [draw.randint(0, 1)] * size))
    return rows


def samples(seed: int, count: int) -> list[TrainSample]:
    """Samples with observations in between; the second has no trained token."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        prompt, size = draw.randint(1, 5), draw.randint(1, 12)
        mask = [0 if number == 1 else draw.randint(0, 1) for _ in range(size)]
        made.append(
            TrainSample(
                prompt_ids=[draw.randrange(VOCABULARY) for _ in range(prompt)],
                response_ids=[draw.randrange(VOCABULARY) for _ in range(size)],
                loss_mask=mask,
                rollout_logprobs=[-draw.uniform(2, 5) if trained else 0.0 for trained in mask],
                advantage=draw.gauss(0, 1),
                group=number // 3,
            )
        )
    return made


def with_values(batch: list[TrainSample]) -> list[TrainSample]:
    """Samples whose tokens have advantages, values and returns of their own."""
    changed = []
    for sample in batch:
        draw, tokens = random.Random(repr(sample.response_ids)), sum(sample.loss_mask)
        advantages, values, returns = ([draw.gauss(0, 1) for _ in range(tokens)] for _ in range(3))
        changed.append(replace(sample, advantages=advantages, values=values, returns=returns))
    return changed
