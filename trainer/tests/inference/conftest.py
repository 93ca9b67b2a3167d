"""Small random models and a tokenizer whose every token is readable."""

import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


class TextTokenizer:
    """Tokens are given strings; decoding is concatenation, encoding greedy by longest match."""

    eos_token_id: int | None = 1
    all_special_tokens = ("<pad>", "<eos>")

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self._ids = {token: number for number, token in reversed(list(enumerate(self.tokens)))}
        self._longest = max(map(len, self.tokens))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(self.tokens[i] for i in token_ids)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            for size in range(self._longest, 0, -1):
                if (number := self._ids.get(text[at : at + size])) is not None:
                    ids.append(number)
                    at += size
                    break
            else:
                ids.append(2)
                at += 1
        return ids


def plain_tokens(count: int) -> list[str]:
    return ["<pad>", "<eos>", "<unk>", *(chr(0x4E00 + i) for i in range(count - 3))]


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(plain_tokens(97))


def make_config(kind: str = "qwen2", **changes: Any) -> Any:
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    options = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    return {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}[kind](**(options | changes))


def make_model(config: Any, seed: int = 0) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():  # biases and norms start as constants: a test must notice when one is left out
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="session")
def model() -> Any:
    return make_model(make_config())


@pytest.fixture(scope="session")
def model_of() -> Callable[..., Any]:
    return lambda kind="qwen2", seed=0, **changes: make_model(make_config(kind, **changes), seed)
