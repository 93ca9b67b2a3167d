"""Weights as the engine serves them: fused for speed, reachable by their Hugging Face names as views."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rljob.types import EngineError

from rljob_trainer.inference.torch_engine.architecture import Architecture
from rljob_trainer.weights.arrays import Array, to_tensor


@dataclass(slots=True)
class LayerWeights:
    """One block. Matrices are [out, in] as in torch.nn.Linear."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class ServedWeights:
    """Storage of all weights. `views` maps Hugging Face names onto it; what they show is what is computed with."""

    def __init__(self, architecture: Architecture, device: torch.device, dtype: torch.dtype) -> None:
        self.architecture = a = architecture
        self.views: dict[str, torch.Tensor] = {}

        def new(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        def named(name: str, tensor: torch.Tensor) -> torch.Tensor:
            self.views[name] = tensor
            return tensor

        def fused(
            prefix: str, parts: dict[str, int], width: int, bias: bool
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            weight = new(sum(parts.values()), width)
            offsets = new(weight.shape[0]) if bias else None
            start = 0
            for part, size in parts.items():
                named(f"{prefix}.{part}.weight", weight[start : start + size])
                if offsets is not None:
                    named(f"{prefix}.{part}.bias", offsets[start : start + size])
                start += size
            return weight, offsets

        self.embedding = named("model.embed_tokens.weight", new(a.vocab_size, a.hidden_size))
        self.layers: list[LayerWeights] = []
        q_size, kv_size = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        for i in range(a.num_layers):
            root = f"model.layers.{i}"
            attention = f"{root}.self_attn"
            qkv, qkv_bias = fused(
                attention, {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}, a.hidden_size, a.qkv_bias
            )
            output, output_bias = fused(attention, {"o_proj": a.hidden_size}, q_size, a.output_bias)
            gate_up, gate_up_bias = fused(
                f"{root}.mlp",
                {"gate_proj": a.intermediate_size, "up_proj": a.intermediate_size},
                a.hidden_size,
                a.mlp_bias,
            )
            down, down_bias = fused(f"{root}.mlp", {"down_proj": a.hidden_size}, a.intermediate_size, a.mlp_bias)
            self.layers.append(
                LayerWeights(
                    input_norm=named(f"{root}.input_layernorm.weight", new(a.hidden_size)),
                    qkv=qkv,
                    qkv_bias=qkv_bias,
                    q_norm=named(f"{attention}.q_norm.weight", new(a.head_dim)) if a.qk_norm else None,
                    k_norm=named(f"{attention}.k_norm.weight", new(a.head_dim)) if a.qk_norm else None,
                    output=output,
                    output_bias=output_bias,
                    post_norm=named(f"{root}.post_attention_layernorm.weight", new(a.hidden_size)),
                    gate_up=gate_up,
                    gate_up_bias=gate_up_bias,
                    down=down,
                    down_bias=down_bias,
                )
            )
        self.final_norm = named("model.norm.weight", new(a.hidden_size))
        if a.tie_word_embeddings:
            self.head = self.embedding
            self._optional = {"lm_head.weight": self.embedding}
        else:
            self.head = named("lm_head.weight", new(a.vocab_size, a.hidden_size))
            self._optional = {}

    def view(self, name: str) -> torch.Tensor:
        """The served tensor of a Hugging Face name; a tied `lm_head.weight` is the embedding."""
        return self.views[name] if name in self.views else self._optional[name]

    def load(self, weights: Mapping[str, torch.Tensor | Array]) -> None:
        """Copy `weights` (all of them, by Hugging Face names) into place.

        Raises EngineError when a name is missing or unknown, or a shape differs; nothing is changed then.
        """
        missing = sorted(self.views.keys() - weights.keys())
        unknown = sorted(weights.keys() - self.views.keys() - self._optional.keys())
        if missing or unknown:
            raise EngineError(
                f"weights do not fit the served model: missing {missing[:3]} ({len(missing)}), "
                f"unknown {unknown[:3]} ({len(unknown)})"
            )
        tensors = {name: _tensor(value) for name, value in weights.items()}
        for name, tensor in tensors.items():
            if tensor.shape != self.view(name).shape:
                raise EngineError(f"weight {name}: shape {tuple(tensor.shape)}, served {tuple(self.view(name).shape)}")
        for name in self._optional.keys() & tensors.keys():
            if not torch.equal(tensors[name], tensors["model.embed_tokens.weight"]):
                raise EngineError(f"weight {name} differs from the embedding that the model ties it to")
        with torch.inference_mode():
            for name, tensor in tensors.items():
                self.view(name).copy_(tensor)

    def shows(self, weights: Mapping[str, torch.Tensor | Array]) -> bool:
        """Whether what is served is `weights`, rounded to the served precision."""
        tensors = {name: _tensor(value) for name, value in weights.items()}
        return all(
            torch.equal(self.view(name).cpu(), tensors[name].cpu().to(self.view(name).dtype)) for name in tensors
        )

    def served(self, names: Mapping[str, object]) -> dict[str, torch.Tensor]:
        """The served tensors under the given names, for a digest."""
        return {name: self.view(name) for name in names}


def _tensor(value: torch.Tensor | Array) -> torch.Tensor:
    return value.detach() if isinstance(value, torch.Tensor) else to_tensor(value)
