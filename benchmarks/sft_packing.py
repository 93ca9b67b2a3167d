"""Rows per second from messages to packed token ids ÷ those of TRL's own pipeline, and how full the sequences are.

Both get the same rows, chat template (with `{% generation %}` marks), tokenizer and length, and one process each with
one thread. TRL: `SFTTrainer._prepare_dataset` with `assistant_only_loss`, packing `bfd` and no shuffling, on rows
that are in memory already; what it makes stays in memory. RLJob: `SftSource` from a file to its store on disk. Both
must train the same number of tokens. Best of two rounds in turns.

The rows are conversations made of the documentation strings of installed packages, each used once; the tokenizer is a
byte-level BPE with Qwen's splitting, trained on part of them.
"""

import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROWS, MAX_LENGTH, ROUNDS = 3000, 8096, 2
GOALS = {"speed": 5.0, "density": 1.0}
PACKAGES = ("torch", "transformers", "numpy", "datasets", "pyarrow", "sympy", "accelerate", "ray")
PATTERN = (  # Qwen's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)


def texts() -> Iterator[str]:
    """Documentation strings, each once, in an order that is the same everywhere the same packages are."""
    seen: set[int] = set()
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(folder).rglob("*.py")):
                for text in re.findall(
                    r'"""(.{80,}?)"""', file.read_text(encoding="utf-8", errors="ignore"), re.DOTALL
                ):
                    if hash(text) not in seen:
                        seen.add(hash(text))
                        yield text


def conversations(count: int) -> list[dict[str, Any]]:
    """One or two exchanges, answers of 1,000 to 18,000 characters with a long tail, as reasoning data has them."""
    rng = random.Random(0)
    source = texts()
    rows = []
    for _ in range(count):
        messages = []
        exchanges = 1 + (rng.random() < 0.2)
        for _ in range(exchanges):
            size = min(18_000 // exchanges, int(1000 * rng.paretovariate(0.6)))
            answer = ""
            while len(answer) < size:
                answer += next(source) + "\n\n"
            question = f"Explain this, step by step: {answer[:120]}"
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer[:size]}]
        rows.append({"messages": messages})
    return rows


def make_tokenizer(rows: list[dict[str, Any]]) -> Any:
    """A tokenizer as Qwen's, of 32,000 tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=32_000, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator((m["content"] for row in rows[:400] for m in row["messages"]), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[1], model_max_length=1 << 30)
    fast.chat_template = TEMPLATE
    return fast


class Made:
    """What a pipeline made."""

    def __init__(self, seconds: float, tokens: int, trained: int, sequences: int) -> None:
        self.seconds, self.trained = seconds, trained
        self.density = tokens / (sequences * MAX_LENGTH)


def run_trl(rows: list[dict[str, Any]], tokenizer: Any) -> Made:
    """TRL's preparation as its trainer calls it."""
    import datasets  # type: ignore[import-untyped]
    from trl.trainer.sft_trainer import SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(rows)
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer, chat_template=TEMPLATE, completion_only_loss=False)
    args: Any = SimpleNamespace(
        dataset_num_proc=None, dataset_text_field="text", assistant_only_loss=True, max_length=MAX_LENGTH,
        packing_strategy="bfd", shuffle_dataset=False, seed=0,
    )  # fmt: skip
    begin = time.perf_counter()
    packed = SFTTrainer._prepare_dataset(trainer, data, tokenizer, args, True, None, "train")
    seconds = time.perf_counter() - begin
    table = packed.with_format("arrow")[:]
    import pyarrow.compute as pc

    labels = pc.list_flatten(table["labels"])
    return Made(seconds, len(labels), pc.sum(pc.not_equal(labels, -100)).as_py(), len(packed))


def run_rljob(file: Path, tokenizer: Any, folder: Path) -> Made:
    """Ours, into an empty folder."""
    from rljob_api.v1alpha1.data import SftDataset
    from rljob_trainer.data.sft import SftSource

    begin = time.perf_counter()
    source = SftSource(
        SftDataset(path=str(file)), tokenizer, folder, batch_size=1, seed=0, max_length=MAX_LENGTH, packing=True,
        processes=1, progress=lambda done, total: None,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    trained = sum(sum(row.loss_mask) for row in source.rows)
    if source.skipped:
        raise RuntimeError(f"{source.skipped} rows are too long: TRL would cut them")
    return Made(seconds, source.counts.tokens, trained, source.counts.sequences)


def main() -> None:
    """Measure both in turns and print the lines."""
    rows = conversations(ROWS)
    tokenizer = make_tokenizer(rows)
    ours: list[Made] = []
    theirs: list[Made] = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "rows.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for number in range(ROUNDS):
            theirs.append(run_trl(rows, tokenizer))
            ours.append(run_rljob(file, tokenizer, Path(scratch, str(number))))
            print(
                f"round {number + 1}: TRL {theirs[-1].seconds:.2f} s, RLJob {ours[-1].seconds:.2f} s, "
                f"{file.stat().st_size / 1e6:.1f} MB, {ours[-1].trained:,} trained tokens",
                file=sys.stderr,
            )
    if ours[0].trained != theirs[0].trained:
        raise RuntimeError(f"trained tokens differ: {ours[0].trained} here, {theirs[0].trained} in TRL")
    speed = min(made.seconds for made in theirs) / min(made.seconds for made in ours)
    values = {"speed": speed, "density": ours[0].density / theirs[0].density}
    about = {
        "rows": ROWS,
        "rows_per_second": round(ROWS / min(made.seconds for made in ours), 1),
        "trl_rows_per_second": round(ROWS / min(made.seconds for made in theirs), 1),
        "density": round(ours[0].density, 4),
        "trl_density": round(theirs[0].density, 4),
    }
    for name, value in values.items():
        line = {"name": f"sft_packing_{name}", "value": round(value, 3), "unit": "ratio", "goal": GOALS[name]}
        print(json.dumps(line | {"met": value >= GOALS[name]} | about), flush=True)


if __name__ == "__main__":
    main()
