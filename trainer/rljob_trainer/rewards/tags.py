"""Rewards for the form of responses: tags that think and answer, as OpenR1 rewards them, or as Search-R1 does."""

from rljob.types import Sample

from rljob_trainer.rewards.arguments import Arguments, Scorer
from rljob_trainer.rewards.text import written
from rljob_trainer.rewards.wellformed import is_well_formed

OPENR1 = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
BARE = ("<think>", "</think>", "<answer>", "</answer>")


def tag_count(sample: Sample, *, newlines: bool = True) -> float:
    """A quarter point for each of `<think>`, `</think>`, `<answer>`, `</answer>` that stands there exactly once.

    With `newlines` (OpenR1's own definition) each counts with the line breaks around it: `<think>\\n`,
    `\\n</think>\\n`, `\\n<answer>\\n`, `\\n</answer>`. A `<think>` that ends the prompt belongs to the response.
    """
    text = written(sample)
    return sum(0.25 for tag in (OPENR1 if newlines else BARE) if text.count(tag) == 1)


def thinks_then_answers(sample: Sample) -> float:
    """1.0 for `<think>\\n…\\n</think>\\n<answer>\\n…\\n</answer>` and nothing else but white space and end tokens.

    Each tag stands there once. A `<think>` that ends the prompt belongs to the response.
    """
    text = written(sample).strip()
    if not text.startswith("<think>\n") or not text.endswith("\n</answer>"):
        return 0.0
    return float(text.count("\n</think>\n<answer>\n") == 1 and all(text.count(tag) == 1 for tag in BARE))


def response_format(args: Arguments) -> Scorer:
    """The reward `format`."""
    style = args.choice("style", ("search", "think"))
    return thinks_then_answers if style == "think" else lambda sample: float(is_well_formed(sample.response))


def counted_tags(args: Arguments) -> Scorer:
    """The reward `tag_count`."""
    newlines = args.flag("newlines", True)
    return lambda sample: tag_count(sample, newlines=newlines)
