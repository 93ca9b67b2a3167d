"""How far is a gradient norm in bfloat16 from one in float32 when transformers itself computes both?

`python -m benchmarks.gpu.bf16_reference`, on a CPU or a GPU. The model and demonstrations of `fsdp_numerics`, none of
our backends: plain transformers, AdamW, float32 master weights. Three numbers a step: bfloat16 at the weights of the
float32 run (rounding alone), bfloat16 on its own path (rounding and what training makes of it), and float32 on its own
path from weights that are off by one part in 2⁹ (what training makes of any difference of that size).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.common import emit
from benchmarks.gpu.fsdp_numerics import WORDS, batches

STEPS = 6


def model() -> Any:
    """The one of `fsdp_numerics`, about 8 million parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=WORDS, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.05, tie_word_embeddings=True,
        pad_token_id=None, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def documents(step: int) -> list[list[int]]:
    """The documents of a step's packed rows."""
    found = []
    for row in batches(step)[0]:
        first = 0
        for size in row.lengths:
            found.append(row.input_ids[first : first + size])
            first += size
    return [ids for ids in found if len(ids) > 1]


def gradients(master: Any, step: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Of the mean cross entropy at `master`'s weights, computed in `dtype`; float32 tensors."""
    computing = copy.deepcopy(master).to(dtype)
    rows = documents(step)
    tokens = sum(len(ids) - 1 for ids in rows)
    totals = [torch.zeros_like(parameter) for parameter in master.parameters()]
    for ids in rows:
        computing.zero_grad(set_to_none=True)
        given = torch.tensor([ids], device=device)
        logits = computing(input_ids=given[:, :-1]).logits.float()
        (nn.functional.cross_entropy(logits[0], given[0, 1:], reduction="sum") / tokens).backward()  # type: ignore[no-untyped-call]
        for total, parameter in zip(totals, computing.parameters(), strict=True):
            total += parameter.grad.float()
    return totals


def norm(tensors: list[Tensor]) -> float:
    return float(nn.utils.get_total_norm(tensors))


def main() -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact, rounded, nudged = (model().to(device) for _ in range(3))
    with torch.no_grad():
        for parameter in nudged.parameters():
            parameter.mul_(1 + (torch.rand_like(parameter) - 0.5) / 256)
    optimizers = {id(m): torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (exact, rounded, nudged)}
    same: list[float] = []
    own: list[float] = []
    drift: list[float] = []
    for step in range(STEPS):
        there = norm(gradients(exact, step, torch.bfloat16, device))
        found = []
        for one, dtype in ((exact, torch.float32), (rounded, torch.bfloat16), (nudged, torch.float32)):
            taken = gradients(one, step, dtype, device)
            found.append(norm(taken))
            for parameter, value in zip(one.parameters(), taken, strict=True):
                parameter.grad = value
            nn.utils.clip_grad_norm_(one.parameters(), 1.0)
            optimizers[id(one)].step()
        same.append(round(abs(there / found[0] - 1), 5))
        own.append(round(abs(found[1] / found[0] - 1), 5))
        drift.append(round(abs(found[2] / found[0] - 1), 5))
    emit("gradient norm, bfloat16 ÷ float32 − 1, at the same weights", same, "by step")
    emit("the same, each on its own path", own, "by step")
    emit("float32 from weights off by 2⁻⁹, on its own path", drift, "by step")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
