"""Policy models and tokenizers, built from `spec.model`."""

from rljob_trainer.models.build import build_config, build_model, end_of_sequence_ids, full_state_names
from rljob_trainer.models.tokenizer import load_tokenizer

__all__ = ["build_config", "build_model", "end_of_sequence_ids", "full_state_names", "load_tokenizer"]
