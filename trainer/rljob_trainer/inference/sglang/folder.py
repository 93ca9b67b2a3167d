"""The folder that SGLang starts from: config and tokenizer of the job, no weights."""

from pathlib import Path
from typing import Any

from rljob_trainer.models.tokenizer import save_tokenizer


def write_model_folder(folder: Path, config: Any, tokenizer: Any, architecture: str) -> Path:
    """Write `config` (transformers) and `tokenizer` to `folder`. `architecture` is the model class' name, by which
    SGLang chooses its own implementation."""
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def architecture_name(config: Any) -> str:
    """Name of the causal language model of `config`, such as `Qwen2ForCausalLM`."""
    from transformers import AutoModelForCausalLM

    given = getattr(config, "architectures", None)
    if given:
        return str(given[0])
    return str(AutoModelForCausalLM._model_mapping[type(config)].__name__)
