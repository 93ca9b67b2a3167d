"""Generate functions: how one sample comes about, with an engine and its tools."""

from rljob_trainer.rollout.generate.base import GenerateFunction, Limits
from rljob_trainer.rollout.generate.chat_turns import Bridge, ChatTurns, continuation_ids
from rljob_trainer.rollout.generate.custom import CustomGenerate
from rljob_trainer.rollout.generate.search import SearchGenerate
from rljob_trainer.rollout.generate.single_turn import SingleTurnGenerate

__all__ = [
    "Bridge",
    "ChatTurns",
    "CustomGenerate",
    "GenerateFunction",
    "Limits",
    "SearchGenerate",
    "SingleTurnGenerate",
    "continuation_ids",
]
