"""Puts an SGLang engine together for a job."""

import tempfile
from pathlib import Path
from typing import Any

from rljob_api.rules.arithmetic import engine_context_length
from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.inference.sglang.arguments import check_arguments, known_arguments, server_arguments
from rljob_trainer.inference.sglang.engine import SglangEngine
from rljob_trainer.models import build_config, end_of_sequence_ids, load_tokenizer
from rljob_trainer.models.tokenizer import save_tokenizer


async def build(spec: RLJobSpec, job_dir: Path, engine_index: int) -> SglangEngine:
    """The engine of `spec`, started, without weights. Raises UserError for arguments that SGLang does not know or does
    not start with."""
    # Nothing on a thread: SGLang binds to this event loop, and its processes end with the thread that made them.
    known = known_arguments()
    check_arguments(spec.rollout.engine_args, known)
    tokenizer = load_tokenizer(spec.model, job_dir)
    config = build_config(spec.model, job_dir, tokenizer)
    longest = engine_context_length(spec, config.max_position_embeddings)
    folder = tempfile.TemporaryDirectory(prefix="rljob-engine-")
    model = write_model_folder(Path(folder.name) / "model", config, tokenizer, architecture_name(config))
    return SglangEngine(
        tokenizer,
        longest,
        server_arguments(spec, str(model), longest, engine_index, known),
        vocab_size=int(config.vocab_size),
        eos_ids=end_of_sequence_ids(spec.model, job_dir, config, tokenizer),
        deterministic=bool(spec.deterministic),
        folder=folder,
    )


def write_model_folder(folder: Path, config: Any, tokenizer: Any, architecture: str) -> Path:
    """Write the folder that SGLang starts from: `config` (transformers) and `tokenizer`, no weights. `architecture` is
    the model class' name, by which SGLang chooses its own implementation."""
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
