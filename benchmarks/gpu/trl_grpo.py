"""TRL's GRPOTrainer with its own generation, on the work of `grpo_step`: `python -m benchmarks.gpu.trl_grpo MODEL`.

Imports nothing of ours but the prompts: it runs beside another transformers. Prints RESULT and JSON.
"""

import json
import sys
import time
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from benchmarks.gpu.runs import NEW_TOKENS, PROMPTS, SAMPLES, prompt_texts

STEPS = 3


def lengths(completions: list[str], **_: Any) -> list[float]:
    """The reward: differs within a group."""
    return [float(len(text) % 7) for text in completions]


def run(folder: str, rows: int) -> dict[str, Any]:
    """Seconds of each step, with `rows` rows a forward pass."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # By name: the checks of types run where TRL need not be installed.
    peer, rows_of = import_module("trl"), import_module("datasets").Dataset.from_list
    callback: Any = transformers.TrainerCallback

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    marks = [time.monotonic()]

    class Clock(callback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **options: Any) -> None:
            torch.cuda.synchronize()
            marks.append(time.monotonic())

    config = peer.GRPOConfig(
        output_dir=f"{folder}-trl",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=PROMPTS * SAMPLES // rows,
        num_generations=SAMPLES,
        max_completion_length=NEW_TOKENS,
        max_steps=STEPS,
        bf16=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        beta=0.001,
        gradient_checkpointing=False,
        temperature=1.0,
        learning_rate=1e-6,
    )
    trainer = peer.GRPOTrainer(
        model=model,
        reward_funcs=lengths,
        args=config,
        train_dataset=rows_of([{"prompt": text} for text in prompt_texts(256)]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()],
    )
    marks[0] = time.monotonic()
    trainer.train()
    found = [line.get("completions/mean_length") for line in trainer.state.log_history]
    return {
        "steps": [round(b - a, 3) for a, b in pairwise(marks)],
        "about": {
            "rows": rows,
            "response": [value for value in found if value is not None],
            "trl": version("trl"),
            "transformers": version("transformers"),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        },
    }


def main(folder: str) -> int:
    import torch

    for rows in (32, 16, 8):
        try:
            print("RESULT" + json.dumps(run(folder, rows)), flush=True)
            return 0
        except torch.OutOfMemoryError as error:
            print(f"{rows} rows: {error}", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
