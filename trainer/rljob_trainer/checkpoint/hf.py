"""Export as a Hugging Face folder: config, safetensors, tokenizer."""

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rljob_trainer.checkpoint.files import fsync_dir, fsync_file
from rljob_trainer.models.tokenizer import save_tokenizer


def save_hf(
    config: Any, architecture: str, weights: Mapping[str, Tensor], tokenizer: Any, directory: str | Path
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads; it appears whole, and replaces an earlier one.

    config: the transformers config. architecture: name of the model's class. weights: all parameters under their
    Hugging Face names, tied ones once.
    """
    from huggingface_hub import save_torch_state_dict

    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (fresh, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    fresh.mkdir()
    config = copy.deepcopy(config)
    config.architectures, config.use_cache = [architecture], True
    config.dtype = next(iter(weights.values())).dtype
    config.save_pretrained(fresh)
    save_torch_state_dict(dict(weights), fresh, max_shard_size="5GB")
    if tokenizer is not None:
        save_tokenizer(tokenizer, fresh)
    for file in fresh.rglob("*"):
        if file.is_file():
            fsync_file(file)
    fsync_dir(fresh)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    fsync_dir(target.parent)
    if old.exists():
        shutil.rmtree(old)
