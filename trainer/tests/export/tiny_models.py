"""Tiny random models of each architecture that can be converted, as transformers makes and saves them."""

from pathlib import Path
from typing import Any

import torch

_COMMON = {
    "vocab_size": 70,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {**_COMMON, "model_type": "qwen2", "intermediate_size": 48},
    "qwen2-tied": {**_COMMON, "model_type": "qwen2", "intermediate_size": 48, "tie_word_embeddings": True},
    "qwen3": {**_COMMON, "model_type": "qwen3", "intermediate_size": 48, "head_dim": 16},
    "llama": {**_COMMON, "model_type": "llama", "intermediate_size": 48, "num_key_value_heads": 4},
    "qwen3_moe": {
        **_COMMON,
        "model_type": "qwen3_moe",
        "intermediate_size": 48,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen3_moe-mixed": {
        **_COMMON,
        "model_type": "qwen3_moe",
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
    },
}


def save_model(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model of `CONFIGS[name]` with random weights, norms and biases included, saved to `folder`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(CONFIGS[name])
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face folder."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
