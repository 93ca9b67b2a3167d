"""Whose layers a Megatron model has, and how either's AdamW is taken up from a commit."""

from typing import Any

import pytest
import torch
from rljob_api.errors import UserError
from rljob_trainer.training.megatron.options import implementation
from rljob_trainer.training.megatron.state import MasterWeight


def test_transformer_engine_is_taken_where_it_is_there_unless_the_job_says_otherwise() -> None:
    assert implementation(None, available=True) == "transformer_engine"
    assert implementation(None, available=False) == "local"
    assert implementation("local", available=True) == "local"
    assert implementation("transformer_engine", available=True) == "transformer_engine"


@pytest.mark.parametrize(
    ("requested", "available", "message"),
    [
        ("transformer_engine", False, "TransformerEngine cannot be imported here"),
        ("inference_optimized", True, "'inference_optimized' is neither 'transformer_engine' nor 'local'"),
        (1, True, "1 is neither"),
    ],
)
def test_layers_that_there_are_not_are_refused_with_the_field(requested: object, available: bool, message: str) -> None:
    with pytest.raises(UserError, match=r"spec\.trainer\.megatronArgs\.transformer_impl: .*" + message):
        implementation(requested, available=available)


class GroupAdamW(torch.optim.Optimizer):
    """Counts steps for each group, as TransformerEngine's does; the bias correction is what they are counted for."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for weight in group["params"]:
                state = self.state[weight]
                for key in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(key, torch.zeros_like(weight))
                state["exp_avg"].lerp_(weight.grad, 0.1)
                state["exp_avg_sq"].lerp_(weight.grad**2, 0.001)
                mean = state["exp_avg"] / (1 - 0.9 ** group["step"])
                square = state["exp_avg_sq"] / (1 - 0.999 ** group["step"])
                weight.data -= group["lr"] * mean / (square.sqrt() + 1e-8)


def master(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> MasterWeight:
    state = optimizer.state[weight]
    counts = isinstance(optimizer, torch.optim.AdamW)
    return MasterWeight("0.0.0", weight, state, state if counts else optimizer.param_groups[0])


def adamw(weight: torch.Tensor, kind: str) -> torch.optim.Optimizer:
    return torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0) if kind == "weight" else GroupAdamW([weight])


@pytest.mark.parametrize("written", ["weight", "group"])
@pytest.mark.parametrize("read", ["weight", "group"])
def test_either_adamw_goes_on_where_the_other_was(written: str, read: str) -> None:
    draw = torch.Generator().manual_seed(1)
    grads = torch.randn(6, 5, generator=draw)
    whole = torch.ones(5, requires_grad=True)
    first = adamw(whole, written)
    assert master(first, whole).steps is None
    for grad in grads[:3]:
        whole.grad = grad.clone()
        first.step()
    old = master(first, whole)
    assert old.steps is not None
    resumed = whole.detach().clone().requires_grad_()
    second = adamw(resumed, read)
    master(second, resumed).restore(
        old.steps.clone(), {key: old.state[key].clone() for key in ("exp_avg", "exp_avg_sq")}
    )
    for grad in grads[3:]:
        for weight, optimizer in ((whole, first), (resumed, second)):
            weight.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(resumed, whole, rtol=1e-5, atol=1e-6)
