"""Reward functions by name, as `spec.reward.functions` gives them."""

from collections.abc import Callable
from typing import Any

from rljob_trainer.config.errors import UserError
from rljob_trainer.config.reward import RewardFunction
from rljob_trainer.rewards.em import em
from rljob_trainer.rewards.wellformed import is_well_formed
from rljob_trainer.rollout.types import Sample

Scorer = Callable[[Sample], Any]
BUILT_IN = ("em", "format", "length")


def build(function: RewardFunction, field: str) -> Scorer:
    """The scorer of a built-in function. Raises UserError for a name that is not one, or arguments it does not have.

    - em: `formatScore` (default 0). See `rewards.em`.
    - format: 1 for a well-formed response, else 0. See `rewards.wellformed`.
    - length: a penalty for long responses (DAPO, arXiv 2503.14476 eq. 13): 0 up to `maxLength` − `buffer` tokens,
      falling linearly to −1 at `maxLength`, −1 beyond. Both are required.
    """
    args = dict(function.args)
    scorer: Scorer
    if function.name == "em":
        format_score = _number(args, "formatScore", field, default=0.0)
        scorer = lambda sample: em(sample.response, sample.label, format_score=format_score)  # noqa: E731
    elif function.name == "format":
        scorer = lambda sample: float(is_well_formed(sample.response))  # noqa: E731
    elif function.name == "length":
        longest, buffer = _number(args, "maxLength", field), _number(args, "buffer", field)
        if not 0 < buffer <= longest:
            raise UserError(f"{field}.args.buffer: {buffer:g} must be above 0 and at most maxLength ({longest:g})")
        scorer = lambda sample: length_penalty(len(sample.response_ids), longest, buffer)  # noqa: E731
    else:
        raise UserError(
            f"{field}.name: {function.name!r} is not available yet", hint=f"available: {', '.join(BUILT_IN)}, custom"
        )
    if args:
        raise UserError(f"{field}.args: {function.name!r} has no argument {min(args)!r}")
    return scorer


def length_penalty(length: int, longest: float, buffer: float) -> float:
    """0 up to `longest` − `buffer`, −1 from `longest`, linear between."""
    return -min(1.0, max(0.0, (length - (longest - buffer)) / buffer))


def _number(args: dict[str, Any], name: str, field: str, default: float | None = None) -> float:
    value = args.pop(name, default)
    if value is None:
        raise UserError(f"{field}.args.{name} is required")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{field}.args.{name}: {value!r} is not a number")
    return float(value)
