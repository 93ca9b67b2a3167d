"""Layers in one pass give what transformers' own give."""

import pytest
import torch
import transformers
from rljob_trainer.training.fsdp.fused_layers import silu_product, use_fused_layers

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Llama", "Qwen3Moe"])
def test_a_model_computes_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = getattr(transformers, f"{kind}Config")(**SHAPE)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter.data, mean=1.0, std=0.3)
    source = __import__("sys").modules[type(model).__module__]
    monkeypatch.setattr(source, "apply_rotary_pos_emb", source.apply_rotary_pos_emb)
    ids = torch.randint(0, 61, (2, 9))
    results = []
    for fused in (False, True):
        if fused:
            use_fused_layers(model)
            use_fused_layers(model)  # twice is once
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    changed = [module for module in model.modules() if "forward" in vars(module)]
    assert len(changed) >= 2 * 2 + 1
    assert len(results[0]) == len(results[1]) > 10
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)


def test_models_of_other_types_are_left_alone() -> None:
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 1}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    use_fused_layers(model)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_the_gated_activation_rounds_once() -> None:
    gate, up = torch.randn(50).bfloat16(), torch.randn(50).bfloat16()
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    assert torch.equal(silu_product(gate, up), exact.to(torch.bfloat16))
