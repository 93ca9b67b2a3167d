"""Prompts, evaluation sets and demonstrations from files. Imports nothing heavy."""

from rljob_trainer.data.prompts import PromptRow, Prompts, PromptSource, load_eval
from rljob_trainer.data.sft import SftRow, SftSource

__all__ = ["PromptRow", "PromptSource", "Prompts", "SftRow", "SftSource", "load_eval"]
