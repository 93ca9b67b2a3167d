"""Export as a Hugging Face folder: config, safetensors, tokenizer."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rljob_trainer.atomic_files import replaced_folder
from rljob_trainer.models.tokenizer import save_tokenizer


def save_hf(
    config: Any, architecture: str, weights: Mapping[str, Tensor], tokenizer: Any, directory: str | Path
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads; it appears whole, and replaces an earlier one.

    config: the transformers config. architecture: name of the model's class. weights: all parameters under their
    Hugging Face names, tied ones once.
    """
    from huggingface_hub import save_torch_state_dict

    config = copy.deepcopy(config)
    config.architectures, config.use_cache = [architecture], True
    config.dtype = next(iter(weights.values())).dtype
    with replaced_folder(Path(directory), fsync=True) as folder:
        folder.mkdir()
        config.save_pretrained(folder)
        save_torch_state_dict(dict(weights), folder, max_shard_size="5GB")
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
