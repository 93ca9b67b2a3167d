"""What the GPU proofs share: lines, sections that fail alone, and models of random weights."""

import contextlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENGINE_ARGS = {
    "attention_backend": "triton",
    "sampling_backend": "flashinfer",
    "grammar_backend": "none",
    "mm_feature_transport": "cpu",
    "disable_custom_all_reduce": True,
    "cuda_graph_max_bs_decode": 512,
}
"""Flags of SGLang on a host without FlashAttention's kernels."""
PEAK = 790e12
"""bf16 FLOP/s of a product of 8192³, measured on an H200."""
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 640},
    "0.1B": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 4096},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936},
}  # fmt: skip


def emit(name: str, value: object, unit: str = "", goal: float | None = None, *, at_most: bool = False) -> None:
    """One line of result; with a goal, whether it is met."""
    met = None
    if goal is not None and isinstance(value, int | float):
        met = value <= goal if at_most else value >= goal
    print(json.dumps({"name": name, "value": value, "unit": unit, "goal": goal, "met": met}), flush=True)


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """A part of a proof: its time is reported, its failure does not keep the others from being tried."""
    start = time.monotonic()
    try:
        yield
        print(f"# {name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    except Exception as error:  # noqa: BLE001 - the parts after it are still worth their GPU time
        traceback.print_exc(limit=-6)
        emit(f"{name}.failed", f"{type(error).__name__}: {str(error)[:300]}")


def model_folder(folder: Path, shape: str) -> Path:
    """A Qwen2 of `shape` with random weights and a byte-level tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    if (folder / "config.json").exists():
        return folder
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer: Any = trainers
    words.train_from_iterator(
        ["hello world the quick brown fox " * 50],
        trainer.BpeTrainer(
            vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    config = Qwen2Config(
        **SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=0, bos_token_id=0
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return folder


def kernel_table(step: Callable[[], object]) -> str:
    """What takes the time of a step, on the GPU and on the host."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    averages = found.key_averages()
    return "\n".join(
        averages.table(sort_by=f"self_{where}_time_total", row_limit=50, max_name_column_width=100)
        for where in ("cuda", "cpu")
    )


def tell_bandwidth(source: int, target: int) -> None:
    """What a link can do: bytes a second of a plain copy from one GPU to another, or within one (read and written)."""
    import torch

    size = 1 << 28
    one = torch.empty(size, dtype=torch.uint8, device=f"cuda:{source}")
    other = torch.empty(size, dtype=torch.uint8, device=f"cuda:{target}")
    best = float("inf")
    for _ in range(8):
        torch.cuda.synchronize(source)
        torch.cuda.synchronize(target)
        start = time.perf_counter()
        for _ in range(8):
            other.copy_(one, non_blocking=True)
        torch.cuda.synchronize(source)
        torch.cuda.synchronize(target)
        best = min(best, (time.perf_counter() - start) / 8)
    if source == target:
        emit("this GPU's copy bandwidth, read and written", round(2 * size / best / 1e9), "GB/s")
    else:
        emit("copy bandwidth from GPU to GPU, one way", round(size / best / 1e9), "GB/s")


def gpu_memory(index: int = 0) -> int:
    """MiB in use on a GPU, by all processes."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", str(index)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip())


def manifest(name: str, model: Path, **spec: Any) -> dict[str, Any]:
    """A job on `model`; `spec` adds to it, section by section."""
    base: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "bfloat16"},
        "data": {"train": {"path": "none.jsonl", "maxPromptLength": 1024}},
        "rollout": {
            "engine": "sglang",
            "engineArgs": dict(ENGINE_ARGS),
            "sampling": {"temperature": 1.0, "maxResponseLength": 1024},
            "maxContextLength": 2048,
        },
        "reward": {"functions": [{"name": "length", "args": {"maxLength": 512, "buffer": 512}}]},
        "trainer": {"backend": "fsdp", "gpusPerReplica": 1, "useDynamicBatchSize": True, "maxTokensPerGpu": 16384},
        "tracking": {"metricsPort": 0},
    }
    for key, value in spec.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return {"apiVersion": "rljob.io/v1alpha1", "kind": "RLJob", "metadata": {"name": name}, "spec": base}
