"""Small random models, a tokenizer and batches for comparisons between backends: the same from the same seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rljob.types import TrainSample

VOCABULARY = 1003
"""Odd, so that tensor-parallel ranks hold padding rows."""


@dataclass
class Demonstration:
    """A row of SFT data, possibly of several packed documents."""

    input_ids: list[int]
    loss_mask: list[int]
    lengths: list[int] | None = None


def write_model(kind: str, directory: Path, **shape: Any) -> Path:
    """A random model of `kind` (qwen2, qwen3, llama, qwen3_moe) with a tokenizer, as a Hugging Face folder."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    options: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "tie_word_embeddings": kind == "qwen2", "initializer_range": 0.05, "bos_token_id": 1, "eos_token_id": 1,
        # With one, transformers holds its embedding at zero and drops its gradient; the batches here use every id.
        "pad_token_id": None,
    }  # fmt: skip
    if kind == "qwen3_moe":
        options |= {
            "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True,
            "router_aux_loss_coef": 0.0, "head_dim": 64,
        }  # fmt: skip
    if kind == "qwen3":
        options["head_dim"] = 64
    options |= shape
    name = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "qwen3_moe": "Qwen3Moe"}[kind]
    config = getattr(transformers, f"{name}Config")(**options)
    torch.manual_seed(11)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():  # Norms and biases of their own, so that a mix-up shows.
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, mean=float(parameter.data.mean()), std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # Decisive, as trained routers are: rounding must not change the choice.
            torch.nn.init.normal_(parameter.data, std=0.5)
    target = directory / kind
    model.save_pretrained(target)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w0"
    ).save_pretrained(target)
    return target


def job(model: Path, *, rl: dict[str, Any] | None = None, lr: float = 1e-3, **trainer: Any) -> dict[str, Any]:
    """A job on the model; keyword arguments go into `trainer`."""
    return {
        "apiVersion": "rljob.io/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": "parity"},
        "spec": {
            "model": {"path": str(model), "source": {"type": "path"}, "dtype": "bfloat16"},
            "sft": {"dataset": {"path": "x.jsonl"}, "optimizer": {"lr": lr, "weightDecay": 0.1}},
            "algorithm": {"kl": {"lossCoef": 0.1}, "entropyCoef": 0.01, "epsClipHigh": 0.28, **(rl or {})},
            "optimizer": {"lr": lr},
            "rollout": {"sampling": {"temperature": 0.8}},
            "trainer": {"backend": "megatron", "microBatchSize": 4, "rankTimeoutSeconds": 150, **trainer},
        },
    }


def demonstrations(seed: int, count: int) -> list[Demonstration]:
    """Rows of 8 to 200 ids."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        size = draw.randint(8, 200)
        rows.append(Demonstration([draw.randrange(VOCABULARY) for _ in range(size)], [draw.randint(0, 1)] * size))
    return rows


def packed(seed: int, count: int) -> list[Demonstration]:
    """Rows of three documents each."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        lengths = [draw.randint(5, 80) for _ in range(3)]
        size = sum(lengths)
        rows.append(Demonstration([draw.randrange(VOCABULARY) for _ in range(size)], [1] * size, lengths))
    return rows


def unpacked(rows: Sequence[Demonstration]) -> list[Demonstration]:
    """The documents of packed rows, one row each."""
    result = []
    for row in rows:
        first = 0
        for size in row.lengths or [len(row.input_ids)]:
            part = slice(first, first + size)
            result.append(Demonstration(row.input_ids[part], row.loss_mask[part]))
            first += size
    return result


def samples(seed: int, count: int) -> list[TrainSample]:
    """Samples with observations in between; the second has no trained token."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        prompt, size = draw.randint(1, 40), draw.randint(8, 160)
        mask = [0 if number == 1 else int(draw.random() < 0.8) for _ in range(size)]
        made.append(
            TrainSample(
                prompt_ids=[draw.randrange(VOCABULARY) for _ in range(prompt)],
                response_ids=[draw.randrange(VOCABULARY) for _ in range(size)],
                loss_mask=mask,
                rollout_logprobs=[-draw.uniform(5, 9) if trained else 0.0 for trained in mask],
                advantage=draw.gauss(0, 1),
            )
        )
    return made
