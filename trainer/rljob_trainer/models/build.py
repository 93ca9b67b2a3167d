"""Building the policy from `spec.model`: random weights of a given shape, or a Hugging Face checkpoint."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rljob_api.errors import UserError
from rljob_api.v1alpha1.model import ModelSpec, RandomInit

from rljob_trainer.models.meta import parameters_on_meta
from rljob_trainer.models.paths import existing_folder, model_root, resolve
from rljob_trainer.models.tokenizer import first_line, is_hub_id

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_config(spec: ModelSpec, job_dir: str | Path, tokenizer: Any) -> Any:
    """The transformers config of the policy.

    With `randomInit` the vocabulary and the special ids come from the tokenizer. Dropout is always 0: log-probs of
    the same weights must not differ between engine, old policy and update.
    """
    if spec.random_init is not None:
        config = _random_config(spec.random_init, tokenizer)
    else:
        from transformers import AutoConfig

        source, options = _checkpoint_source(spec, job_dir)
        try:
            config = AutoConfig.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            raise UserError(f"spec.model.path: no model config in {spec.path!r}: {first_line(error)}") from error
    for key, value in spec.overrides.items():
        if not hasattr(config, key):
            raise UserError(f"spec.model.overrides.{key}: the config of a {config.model_type} model has no such field")
        setattr(config, key, value)
    for name in ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.use_cache = False
    return config


def end_of_sequence_ids(spec: ModelSpec, job_dir: str | Path, config: Any, tokenizer: Any) -> list[int]:
    """Tokens with which the model ends what it writes: those of its config, its `generation_config.json` and its
    tokenizer. Chat models whose config names the end of a document alone have the end of a turn in the second."""
    found = [tokenizer.eos_token_id, *_listed(config.eos_token_id)]
    if spec.random_init is None and "eos_token_id" not in spec.overrides:
        from transformers import GenerationConfig

        source, options = _checkpoint_source(spec, job_dir)
        options.pop("trust_remote_code")
        with suppress(OSError):  # it has none
            found += _listed(GenerationConfig.from_pretrained(source, **options).eos_token_id)
    return sorted({i for i in found if i is not None})


def _listed(ids: int | list[int] | None) -> list[int | None]:
    return list(ids) if isinstance(ids, list | tuple) else [ids]


def build_model(
    spec: ModelSpec,
    job_dir: str | Path,
    tokenizer: Any,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    load: bool = True,
    meta: bool = False,
) -> Any:
    """The policy as a transformers causal language model on the CPU.

    `seed` fixes the weights of `randomInit` without touching the global generator. `dtype` is that of the parameters
    (by default `model.dtype`). `load=False` leaves a checkpoint's weights out: the shape alone, for weights that
    arrive otherwise (an engine, a resumed rank). `meta` leaves even their memory out, see `models.meta`.
    """
    from transformers import AutoModelForCausalLM

    config = build_config(spec, job_dir, tokenizer)
    dtype = dtype or DTYPES[spec.dtype]
    options: dict[str, Any] = {"attn_implementation": spec.attention_implementation, "dtype": dtype}
    if meta:
        with parameters_on_meta(), torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code, **options)
    elif spec.random_init is not None or not load:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code, **options)
    else:
        source, more = _checkpoint_source(spec, job_dir)
        try:
            model = AutoModelForCausalLM.from_pretrained(source, config=config, **options, **more)
        except (OSError, ValueError) as error:
            raise UserError(
                f"spec.model.path: no weights could be loaded from {spec.path!r}: {first_line(error)}"
            ) from error
    if model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        raise UserError(
            f"spec.model: the tokenizer has {len(tokenizer)} tokens but the model's embedding only "
            f"{model.get_input_embeddings().weight.shape[0]} rows"
        )
    return model


def full_state_names(model: Any) -> list[str]:
    """Names of the parameters that make up the weights, sorted; tied ones once."""
    return sorted(name for name, _ in model.named_parameters())


def _random_config(shape: RandomInit, tokenizer: Any) -> Any:
    from transformers import Qwen2Config

    prefix = "spec.model.randomInit"
    if shape.hidden_size % shape.num_attention_heads:
        raise UserError(
            f"{prefix}: hiddenSize {shape.hidden_size} must be a multiple of numAttentionHeads "
            f"{shape.num_attention_heads}"
        )
    if (shape.hidden_size // shape.num_attention_heads) % 2:
        raise UserError(
            f"{prefix}: hiddenSize {shape.hidden_size} over numAttentionHeads {shape.num_attention_heads} gives heads "
            f"of {shape.hidden_size // shape.num_attention_heads}; rotary embeddings need an even size"
        )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise UserError(
            f"{prefix}: numAttentionHeads {shape.num_attention_heads} must be a multiple of numKeyValueHeads "
            f"{shape.num_key_value_heads}"
        )
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        initializer_range=shape.initializer_range,
        tie_word_embeddings=shape.tie_word_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _checkpoint_source(spec: ModelSpec, job_dir: str | Path) -> tuple[str, dict[str, Any]]:
    """Folder or Hub id of `model.path`, and the loading options that go with it."""
    if spec.path is None:
        raise UserError("spec.model.path is required without spec.model.randomInit")
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.source.type in ("auto", "hub") and not resolve(job_dir, spec.path).is_dir() and is_hub_id(spec.path):
        cache = str(resolve(job_dir, spec.cache_dir)) if spec.cache_dir else None
        return spec.path, options | {
            "revision": spec.revision,
            "cache_dir": cache,
            "local_files_only": spec.offline,
        }
    root = model_root(spec.source, job_dir)
    return str(existing_folder(root, spec.path, "spec.model.path", "config.json")), options


def weights_folder(spec: ModelSpec, job_dir: str | Path) -> Path | None:
    """The folder with the weights of `model.path`, downloaded when it is on the Hub; None with `randomInit`."""
    if spec.random_init is not None:
        return None
    source, options = _checkpoint_source(spec, job_dir)
    if "revision" not in options:
        return Path(source)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.safetensors.index.json"]
    options = {name: options[name] for name in ("revision", "cache_dir", "local_files_only")}
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **options))
    except (OSError, ValueError) as error:
        raise UserError(f"spec.model.path: {source!r} could not be downloaded: {first_line(error)}") from error
