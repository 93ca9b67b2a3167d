"""The folder that SGLang starts from: config and tokenizer of the job, no weights."""

import json
from pathlib import Path
from typing import Any


def write_model_folder(folder: Path, config: Any, tokenizer: Any, architecture: str) -> Path:
    """Write `config` (transformers) and `tokenizer` to `folder`. `architecture` is the model class' name, by which
    SGLang chooses its own implementation."""
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer_config = folder / "tokenizer_config.json"
    known = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    # Written by another major version of transformers, the name of the class may be one that SGLang's does not know.
    if known.get("tokenizer_class") == "TokenizersBackend":
        known["tokenizer_class"] = "PreTrainedTokenizerFast"
        tokenizer_config.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return folder


def architecture_name(config: Any) -> str:
    """Name of the causal language model of `config`, such as `Qwen2ForCausalLM`."""
    from transformers import AutoModelForCausalLM

    given = getattr(config, "architectures", None)
    if given:
        return str(given[0])
    return str(AutoModelForCausalLM._model_mapping[type(config)].__name__)
