"""DAPO's rewards (Yu et al. 2025, arXiv:2503.14476): the score of integer answers, with Minerva's normalisation of
texts, and the penalty of overlong responses."""

import re
from typing import Any

from rljob_trainer.rewards.arguments import Arguments, Scorer
from rljob_trainer.rewards.notation import whole
from rljob_trainer.rewards.text import is_cut_off, label_text, last_boxed, without_end_tokens

READ, READ_STRICT = 300, 100
"""Characters at the end of a response that are looked at, with an `Answer:` line and with `strictBox`."""
_ANSWER_LINE = re.compile(r"Answer\s*:\s*([^\n]+)", re.IGNORECASE)

_WORDS = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "points", "feet", "minutes"),
    *("digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students", "childrentickets"),
    *("multiples", "sue"),
)
_MARKS = (
    *("\\ldots", "\\dots", "\\text{s}", "\\text{.}", "\\text{}^2", "\\text{}^3", "\\text{}", "\\mathrm{th}"),
    *("^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"'),
)
_MIXED = re.compile(r"(?<=\d) +(?=\d+/\d)")
"""The space of a mixed number: `1 1/2` is not `11/2`."""
_WRAPPED = tuple(re.compile(rf"\\{name}\{{(.*?)\}}") for name in ("text", "textbf", "overline"))


def dapo(response: str, label: Any, *, strict_box: bool = False) -> float:
    """+1.0 when the final answer is the label, else −1.0.

    The answer is what follows the last `Answer:` (any case) on its line, within the last 300 characters; it and the
    label are compared after `normalise`. With `strict_box` it is the last `\\boxed{…}` within the last 100 characters,
    and must be the label to the letter. A last box that the length limit has cut off is no answer.
    """
    gold, text = label_text(label, "dapo"), without_end_tokens(response)
    if is_cut_off(text):
        return -1.0
    if strict_box:
        return 1.0 if last_boxed(text[-READ_STRICT:]) == gold else -1.0
    lines = _ANSWER_LINE.findall(text[-READ:])
    return 1.0 if lines and normalise(lines[-1]) == normalise_label(gold) else -1.0


def normalise(answer: str) -> str:
    """A final answer as Minerva compares it (Lewkowycz et al. 2022, arXiv:2206.14858, appendix D).

    What follows the last `=`; without articles, spaces, units and their `\\text`; the inside of `$…$`, `\\text{…}`,
    `\\textbf{…}`, `\\overline{…}`, `\\boxed{…}`; `\\frac12` and `\\sqrt2` with braces; integers without thousands
    separators.
    """
    text = _MIXED.sub("+", answer.rpartition("=")[2])
    for before, after in (
        *(("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text")),
        *((",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}")),
        *((removed, "") for removed in (*_WORDS, *_MARKS)),
    ):
        text = text.replace(before, after)
    if (first := text.find("$")) >= 0 and (second := text.find("$", first + 1)) >= 0:
        text = text[first : second + 1]
    for wrapped in _WRAPPED:
        text = wrapped.sub(r"\1", text)
    text = re.sub(r"\\boxed\{(.*)\}", r"\1", text)
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    text = re.sub(r"sqrt([^{])", r"sqrt{\1}", text).replace("$", "")
    if text.replace(",", "").isdigit():
        text = text.replace(",", "")
    return text.strip()


def normalise_label(label: str) -> str:
    """A label as an answer is normalised; a whole number in any notation (`42.0`) as an integer."""
    text = normalise(last_boxed(label) or label)
    return whole(text) or text


def length_penalty(length: int, longest: float, buffer: float) -> float:
    """0 up to `longest` − `buffer` tokens, −1 from `longest`, linear between (eq. 13)."""
    return -min(1.0, max(0.0, (length - (longest - buffer)) / buffer))


def integer_answer(args: Arguments) -> Scorer:
    """The reward `dapo`."""
    strict = args.flag("strictBox", False)
    return lambda sample: dapo(sample.response, sample.label, strict_box=strict)


def overlong_penalty(args: Arguments) -> Scorer:
    """The reward `length`."""
    longest, buffer = args.number("maxLength"), args.number("buffer")
    if not 0 < buffer <= longest:
        raise args.wrong("buffer", f"{buffer:g} must be above 0 and at most maxLength ({longest:g})")
    return lambda sample: length_penalty(len(sample.response_ids), longest, buffer)
