"""Reward functions by name, as `spec.reward.functions` gives them."""

from collections.abc import Callable
from typing import Any

from rljob.types import Sample
from rljob_api.manifest.errors import UserError
from rljob_api.v1alpha1.reward import RewardFunction

from rljob_trainer.rewards.arguments import Arguments
from rljob_trainer.rewards.dapo import dapo
from rljob_trainer.rewards.em import em
from rljob_trainer.rewards.pool import WorkerFunction
from rljob_trainer.rewards.tags import tag_count, thinks_then_answers
from rljob_trainer.rewards.text import label_text
from rljob_trainer.rewards.wellformed import is_well_formed

Scorer = Callable[[Sample], Any]
VERIFIERS = {"math": "rljob_trainer.rewards.verifiers:math", "deepscaler": "rljob_trainer.rewards.verifiers:deepscaler"}
"""Built-in rewards that compute with expressions of the model's: in a worker, within limits of time and memory."""
VERIFIER_MEMORY = 2 << 30
"""Bytes that verifying one sample may take beyond what its process holds."""


def build(function: RewardFunction, field: str) -> Scorer:
    """The scorer of a built-in reward whose time is linear in the response. docs/rewards.md has the definitions.

    Raises UserError for a name that is not one, or arguments it does not have.
    """
    args = Arguments(function.args, f"{field}.args", function.name)
    scorer: Scorer
    match function.name:
        case "em":
            format_score = args.number("formatScore", 0.0)
            scorer = lambda sample: em(sample.response, sample.label, format_score=format_score)  # noqa: E731
        case "dapo":
            strict = args.flag("strictBox", False)
            scorer = lambda sample: dapo(sample.response, sample.label, strict_box=strict)  # noqa: E731
        case "format":
            style = args.choice("style", ("search", "think"))
            scorer = thinks_then_answers if style == "think" else lambda sample: float(is_well_formed(sample.response))
        case "tag_count":
            newlines = args.flag("newlines", True)
            scorer = lambda sample: tag_count(sample, newlines=newlines)  # noqa: E731
        case "length":
            longest, buffer = args.number("maxLength"), args.number("buffer")
            if not 0 < buffer <= longest:
                raise UserError(f"{field}.args.buffer: {buffer:g} must be above 0 and at most maxLength ({longest:g})")
            scorer = lambda sample: length_penalty(len(sample.response_ids), longest, buffer)  # noqa: E731
        case name:
            raise UserError(f"{field}.name: there is no built-in reward {name!r}")
    args.done()
    return scorer


def verifier(function: RewardFunction, field: str) -> WorkerFunction:
    """A built-in reward that runs in a worker. Raises UserError for arguments: there are none."""
    Arguments(function.args, f"{field}.args", function.name).done()
    return WorkerFunction(VERIFIERS[function.name], f"{field}.name", {}, memory=VERIFIER_MEMORY, text_only=True)


def check_label(name: str, label: Any) -> None:
    """Raises ValueError for a label that the verifier `name` cannot be given."""
    label_text(label, name)


def length_penalty(length: int, longest: float, buffer: float) -> float:
    """0 up to `longest` − `buffer` tokens, −1 from `longest`, linear between (DAPO, arXiv:2503.14476, eq. 13)."""
    return -min(1.0, max(0.0, (length - (longest - buffer)) / buffer))
