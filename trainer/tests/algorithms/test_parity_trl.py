"""Our numbers against the loss of TRL's GRPOTrainer (1.16) on random tensors, where the definitions agree.

The trainer's own method is called with log-probabilities in place of a model.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from rljob_trainer.algorithms import cispo_loss, gspo_loss, kl_estimate, ppo_clip_loss, token_weights
from torch import Tensor

pytestmark = pytest.mark.slow
SIZES = torch.tensor([3, 6, 1, 5])
MASK = torch.arange(6) < SIZES[:, None]
SAMPLE = torch.repeat_interleave(torch.arange(4), SIZES)
BETA = 0.1


def draw(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


OLD, REF, ADVANTAGES = draw(1) - 2, draw(2) - 2, torch.tensor([1.0, -1.0, 0.5, -0.3], dtype=torch.float64)


def theirs(logprobs: Tensor, loss_type: str, level: str = "token", *, bias_correction: bool = False) -> Tensor:
    """What TRL's trainer makes of the log-probabilities."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    args = SimpleNamespace(use_bias_correction_kl=bias_correction, delta=None, steps_per_generation=1)
    trainer = SimpleNamespace(
        args=args, loss_type=loss_type, importance_sampling_level=level, beta=BETA, epsilon_low=0.2,
        epsilon_high=1.28 if loss_type == "cispo" else 0.28, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        use_vllm=False, max_completion_length=8, current_gradient_accumulation_steps=1, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )  # fmt: skip
    ids = torch.zeros(MASK.shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": MASK.long(),
        "advantages": ADVANTAGES, "old_per_token_logps": OLD, "ref_per_token_logps": REF,
        "num_items_in_batch": SIZES.sum(),
    }  # fmt: skip
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


def ours(logprobs: Tensor, loss: str, aggregation: str, *, unbiased: bool = False) -> Tensor:
    lp, old, ref, advantages = logprobs[MASK], OLD[MASK], REF[MASK], ADVANTAGES[SAMPLE]
    weight = token_weights(
        SAMPLE, aggregation, sample_tokens=SIZES, batch_samples=4, batch_tokens=int(SIZES.sum()), constant_length=8  # type: ignore[arg-type]
    ).double()  # fmt: skip
    if loss == "gspo":
        token_loss, _, _ = gspo_loss(lp, old, advantages, SAMPLE, 4, eps_clip=0.2, eps_clip_high=0.28)
    elif loss == "cispo":
        token_loss, _, _ = cispo_loss(lp, old, advantages, eps_clip=1.0, eps_clip_high=0.28)
    else:
        token_loss, _, _ = ppo_clip_loss(lp, old, advantages, eps_clip=0.2, eps_clip_high=0.28)
    ratio = torch.exp(lp - old) if unbiased else None
    return (weight * (token_loss + BETA * kl_estimate(lp, ref, "k3", ratio))).sum()


CASES: list[tuple[str, str, str, str, bool]] = [
    ("grpo", "token", "ppo_clip", "per_sample", False),
    ("grpo", "token", "ppo_clip", "per_sample", True),
    ("bnpo", "token", "ppo_clip", "per_token", False),
    ("dapo", "token", "ppo_clip", "per_token", False),
    ("dr_grpo", "token", "ppo_clip", "constant", False),
    ("cispo", "token", "cispo", "per_token", False),
    ("grpo", "sequence", "gspo", "per_sample", False),
]


@pytest.mark.parametrize(("loss_type", "level", "loss", "aggregation", "unbiased"), CASES)
def test_loss_and_gradient(loss_type: str, level: str, loss: str, aggregation: str, unbiased: bool) -> None:
    start = OLD + draw(3, 0.3)
    mine, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    a = ours(mine, loss, aggregation, unbiased=unbiased)
    b = theirs(other, loss_type, level, bias_correction=unbiased)
    assert a.item() == pytest.approx(b.item(), rel=1e-6)
    a.backward()
    b.backward()
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-9)


def test_entropy_and_logprobs_of_tokens() -> None:
    from rljob_trainer.algorithms import token_entropy
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits = torch.randn(4, 5, 11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(token_entropy(logits), entropy_from_logits(logits), rtol=1e-5, atol=1e-6)
    ids = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(1))
    mine = -torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
    torch.testing.assert_close(mine.view(4, 5), selective_log_softmax(logits, ids), rtol=1e-5, atol=1e-6)
