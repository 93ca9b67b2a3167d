"""A transformers model as a policy: log-probabilities of given tokens, computed only where they are asked for."""

from typing import Any

import torch
from torch import Tensor, nn

from rljob_trainer.algorithms import token_entropy
from rljob_trainer.training.microbatch import Packing
from rljob_trainer.training.vocab import vocab_logprobs

PLAIN_HEAD = frozenset({"llama", "mistral", "qwen2", "qwen3", "qwen3_moe"})
"""Model types whose logits are the output projection of the last hidden state and nothing else."""


class Policy(nn.Module):
    """Wraps a causal language model. FSDP shards this module, so that its hooks see every use of the weights."""

    def __init__(self, hf: Any, *, chunk: int | None = None) -> None:
        """`chunk`: tokens whose logits exist at once; None: those of the whole pass do."""
        super().__init__()
        self.hf = hf
        self.plain_head = hf.config.model_type in PLAIN_HEAD
        self.chunk = chunk if hf.get_output_embeddings().bias is None else None

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        entropy: str = "none",
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """log π(targets) at `positions` under softmax(logits / temperature), and the entropy there.

        input_ids: [B, T] int64, padded on the right: causal attention needs no mask then; or, with `packing`, [1, T] of
        documents one after another. positions: [N] int64 into the flattened ids. targets: [N]. `entropy`: `none`,
        `value` (no gradient) or `gradient`. Returns ([N] float32, [N] float32 or None).
        """
        bounds = document_bounds(packing, input_ids.device)
        if self.plain_head:
            hidden = self.hf.base_model(input_ids=input_ids, use_cache=False, **bounds).last_hidden_state
            chosen = hidden.flatten(0, 1).index_select(0, positions)
            if self.chunk is not None:
                weight = self.hf.get_output_embeddings().weight
                logprobs, entropies = vocab_logprobs(chosen, weight, targets, temperature=temperature, chunk=self.chunk)
                if entropy == "none":
                    return logprobs, None
                return logprobs, entropies if entropy == "gradient" else entropies.detach()
            logits = self.hf.get_output_embeddings()(chosen).float()
        else:
            logits = self.hf(input_ids=input_ids, use_cache=False, **bounds).logits
            logits = logits.flatten(0, 1).index_select(0, positions).float()
        if temperature != 1.0:
            logits = logits / temperature
        logprobs = -nn.functional.cross_entropy(logits, targets, reduction="none")
        if entropy == "none":
            return logprobs, None
        if entropy == "gradient":
            return logprobs, token_entropy(logits)
        with torch.no_grad():
            return logprobs, token_entropy(logits.detach())


def document_bounds(packing: Packing | None, device: torch.device) -> dict[str, Any]:
    """Where documents begin, as arguments that transformers' models pass on to their attention."""
    if packing is None:
        return {}
    bounds = packing.bounds.to(device)
    return {
        "position_ids": packing.position_ids.to(device),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": packing.longest,
        "max_length_k": packing.longest,
    }
