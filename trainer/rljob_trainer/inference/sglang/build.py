"""Puts an SGLang engine together for a job."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from rljob_api.v1alpha1.job import RLJobSpec

from rljob_trainer.inference.sglang.arguments import check_arguments, known_arguments, server_arguments
from rljob_trainer.inference.sglang.engine import SglangEngine
from rljob_trainer.inference.sglang.folder import architecture_name, write_model_folder
from rljob_trainer.models import build_config, end_of_sequence_ids, load_tokenizer


def build(
    spec: RLJobSpec, job_dir: str | Path, engine_index: int, context_length: Callable[[int], int]
) -> SglangEngine:
    """The engine of `spec`, started, without weights. `context_length` gives the longest sequence from the model's
    number of positions. Raises UserError for arguments that SGLang does not know or does not start with."""
    known = known_arguments()
    check_arguments(spec.rollout.engine_args, known)
    tokenizer = load_tokenizer(spec.model, job_dir)
    config = build_config(spec.model, job_dir, tokenizer)
    longest = context_length(config.max_position_embeddings)
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
