"""Where a response's final answer stands: end tokens, thinking, `<answer>` blocks, `\\boxed{…}`."""

import re
from typing import Any

from rljob.types import Sample

from rljob_trainer.rewards.notation import number_text
from rljob_trainer.rewards.wellformed import extract_answer

_END_TOKENS = re.compile(r"(?:\s*(?:<[|｜][^<>|｜\s]{1,40}[|｜]>|</s>|<eos>|<pad>|<end_of_turn>))+\s*\Z")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?=[^\s{])")
_BEGUN = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|\Z)")
THINK, THINK_END = "<think>", "</think>"


def without_end_tokens(text: str) -> str:
    """The text without the end tokens that an engine leaves there (`<|im_end|>`, `</s>`, `<eos>` …)."""
    tail = text[-200:]
    return text[: len(text) - len(tail)] + _END_TOKENS.sub("", tail)


def written(sample: Sample) -> str:
    """The response without end tokens, and with the `<think>` that a chat template has opened for it.

    Templates of reasoning models end the prompt with `<think>`: it belongs to the response's form.
    """
    opened = sample.prompt.rstrip()
    prefix = sample.prompt[len(opened) - len(THINK) :] if opened.endswith(THINK) else ""
    return prefix + without_end_tokens(sample.response)


def after_thinking(text: str) -> str | None:
    """What follows the last `</think>`; the whole text when nothing was thought; None when thinking did not end."""
    _, closed, rest = text.rpartition(THINK_END)
    if closed:
        return rest
    return None if THINK in text else text


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}` (or `\\fbox{…}`) of a text, or None. Linear in the length of the text.

    Braces must balance; escaped ones (`\\{`) are text. An unclosed box is no answer, not even when one before it is.
    """
    last = None
    for last in _BOXED.finditer(text):  # noqa: B007 - the last one is looked for
        pass
    if last is None:
        return None
    start = last.end()
    if text[start] != "{":  # `\boxed 7`: one token without braces
        return text[start:].split(maxsplit=1)[0].split("$")[0] or None
    depth, place = 0, start
    while place < len(text):
        character = text[place]
        if character == "\\":
            place += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : place].strip()
        place += 1
    return None


def is_cut_off(text: str) -> bool:
    """Whether the last box of a text is not closed: the length limit has cut off the answer. No earlier one counts."""
    found = None
    for found in _BEGUN.finditer(text):  # noqa: B007 - the last one is looked for
        pass
    return found is not None and last_boxed(text[found.start() :]) is None


def final_answer(sample: Sample) -> str | None:
    """The part of a response that holds its answer: after the thinking, within the last `<answer>` if there is one."""
    text = after_thinking(written(sample))
    if text is None:
        return None
    answer = extract_answer(text)
    return text if answer is None else answer


def shown(label: Any) -> str:
    """A label for a message, shortened."""
    text = repr(label)
    return text if len(text) <= 200 else f"{text[:199]}…"


def label_text(label: Any, reward: str) -> str:
    """The golden answer as text: a text or number (`1e-05` as `0.00001`), or the only entry of a list of one.

    Raises ValueError on anything else, on NaN, and on a blank one.
    """
    if isinstance(label, list | tuple) and len(label) == 1:
        label = label[0]
    if isinstance(label, bool) or not isinstance(label, str | int | float) or label != label or not str(label).strip():
        raise ValueError(f"{reward} needs a golden answer (a text or a number), the label is {shown(label)}")
    return label.strip() if isinstance(label, str) else number_text(label)
