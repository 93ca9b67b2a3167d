"""The form of responses that think and answer in tags, as OpenR1 rewards it."""

from rljob.types import Sample

from rljob_trainer.rewards.text import written

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
