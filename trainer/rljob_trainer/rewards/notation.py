"""One notation for numbers that are written in many ways, before a verifier parses them.

Pure functions from text to text, linear in its length. Values are exact: what becomes a fraction is reduced, never
rounded.
"""

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from math import isfinite

_SPACE = r"(?:\\[,;:! ]|~|[\u00a0\u2009\u202f]|\{,\}|,\\! ?)"
"""What separates groups of three digits and is never a comma between elements."""
_GROUPED = re.compile(
    rf"(?<![\d.,_^])\d{{1,3}}(?:{_SPACE}\d{{3}})+(?![\d.]?\d)"
    r"|(?<![\d.,_^] )(?<![\d.,_^])\d{1,3}(?: \d{3})+(?![ ,]?\d)"
)
_THOUSANDS = re.compile(r"(?<![\d.,_^])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_FRACTION = r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))|(?<=\s)(\d+)/(\d+)"
_MIXED = re.compile(rf"(?<![\w.,}})^/\\])(\d+)(?:\\[,;:! ]|\s)*(?:{_FRACTION})(?![\w^/.])")
_REPEATING = re.compile(
    r"(?<![\w.])(\d{1,60})\.(\d{0,60})(?:\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,60})\s*\}|(\d))|\((\d{1,60})\))(?![\d.(])"
)
_UPRIGHT = re.compile(r"\\(?:mathrm|rm|operatorname|text)\s*\{\s*(e|i|\\pi)\s*\}")
_PERCENT_WORD = r"(?:percent|per cent|pct)"
_PERCENT = re.compile(
    r"(?<=[\d.)}$])(?:\s|\\[,;: ]|~)*"
    rf"(?:\\(?:text|mathrm|mbox)\{{\s*{_PERCENT_WORD}\.?\s*\}}|{_PERCENT_WORD}\b\.?)",
    re.IGNORECASE,
)
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,5})?\Z")
_POINT = re.compile(r"(?<=\d)\.(?=[\s,)\]}]|\\[}),]|\Z)")
"""A point without digits behind it: `1.` is 1."""
_MOST_DIGITS = 4000
_SCIENTIFIC = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d{1,3}\Z")
_BASED = re.compile(
    r"(?P<digits>[0-9A-Za-z]+)_"
    r"(?:\{\s*(?:\\text\{\s*)?(?P<braced>\d{1,2}|[a-z]+)\s*\}?\s*\}|(?P<bare>\d))\Z"
)
_EMPHASIS = re.compile(r"\s*(\*\*\*|\*\*|__|\*)(?P<inner>[^*_]+)\1\s*\Z")
_ROOT = re.compile(r"[√]\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|\(([^()]*)\))")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_SPACES = re.compile(r"(?<=\d)(\s+)(?=\d)|\s+")
_FULL_WIDTH = re.compile("[\uff01-\uff5e\u3000]+")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10} | {
    "twelve": 12, "sixteen": 16,
}  # fmt: skip


def tidy(text: str) -> str:
    """A final answer or label without its typography, the mathematics unchanged.

    Markdown emphasis around all of it and the full stop behind it go; full-width and raised characters, `√2`, `½` and
    the signs of minus (U+2212) and degrees become ASCII and LaTeX; `\\mathrm{e}` and `\\mathrm{i}` become `e` and `i`;
    `28 percent` becomes `28\\%`.
    """
    text = text.strip()
    while (match := _EMPHASIS.match(text)) is not None:
        text = match["inner"].strip()
    text = _FULL_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = _VULGAR.sub(_vulgar, text)
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = text.replace("\u2212", "-").replace("°", "^{\\circ}")
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text)
    text = _UPRIGHT.sub(lambda found: found[1], text)
    text = _PERCENT.sub(r"\\%", text)
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


def numbers(text: str) -> str:
    """The text with each number in one notation.

    Groups of three digits are joined (`12\\,345`, `12 345`, and `12,345` where a comma does not separate elements, see
    `thousands`); a repeating decimal (`0.\\overline{3}`, `0.(3)`) and a mixed number (`-7\\frac34` is −31/4, `7 3/4`
    is 31/4) become one fraction; scientific notation alone (`1e-05`) is written out.
    """
    text = scientific(text)
    text = _GROUPED.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = thousands(text)
    return _MIXED.sub(_mixed, _POINT.sub("", _REPEATING.sub(_repeating, text)))


def without_spaces(text: str) -> str:
    """The text without white space; one space stays between two digits: `1 1/2` is not `11/2`."""
    return _SPACES.sub(lambda found: " " if found[1] else "", text)


def thousands(text: str) -> str:
    """The text without commas between thousands.

    Within brackets (`(5,120)`, `[0,100]`, `\\{1,000\\}`) a comma separates elements; only where another comma there is
    followed by a space (`(1,000, 2,000)`) do those without one separate thousands.
    """
    spaced = re.search(r",(?:\s|\\[ ,;:])", text) is not None
    parts, place, depth, seen = [], 0, 0, 0
    for found in _THOUSANDS.finditer(text):
        depth += _opened(text, seen, found.start())
        seen = found.start()
        if depth > 0 and not spaced:
            continue
        parts += [text[place : found.start()], found[0].replace(",", "")]
        place = found.end()
    return "".join([*parts, text[place:]])


def scientific(text: str) -> str:
    """`1e-05` as `0.00001`, `1e20` as `100000000000000000000`; any other text as it is."""
    text = text.strip()
    return format(Decimal(text), "f") if _SCIENTIFIC.match(text) else text


def number_text(value: float) -> str:
    """A number of a data file as digits, without an exponent. Raises ValueError for NaN and infinities."""
    if isinstance(value, int):
        return str(value)
    if not isfinite(value):
        raise ValueError(f"{value} is no number to compare with")
    return format(Decimal(repr(value)), "f")


def whole(text: str) -> str | None:
    """The digits of a whole number (`42.0`, `1e3`), exact at any size; None for anything else."""
    if _DECIMAL.match(text) is None:
        return None
    number = Decimal(text)
    if abs(number.adjusted()) > _MOST_DIGITS or number != number.to_integral_value():
        return None
    return str(int(number))


def decimal(text: str) -> float | None:
    """The value of a decimal number (`-1.5`, `.5`, `1e3`), to float64; None for anything else."""
    return float(text) if _DECIMAL.match(text) else None


def with_base(text: str) -> tuple[str, int] | None:
    """Digits and base of `1010_2`, `1010_{2}` or `1F_{16}`; None for anything else, such as a letter with an index
    (`a_{12}`)."""
    match = _BASED.match(text.strip())
    if match is None or (len(match["digits"]) == 1 and match["digits"].isalpha()):
        return None
    written = match["braced"] or match["bare"]
    base = int(written) if written.isdigit() else _BASES.get(written, 0)
    try:
        int(match["digits"], base if base >= 2 else 1)
    except ValueError:
        return None
    return match["digits"].lstrip("0").lower() or "0", base


def same_with_base(one: str, other: str) -> bool | None:
    """Whether two numbers, one of which at least names its base, are equal; None where neither does.

    Both with a base: by value. Where one leaves its base out it is the other's: the digits decide.
    """
    first, second = with_base(one), with_base(other)
    if first is None and second is None:
        return None
    if first is not None and second is not None:
        return int(*first) == int(*second)
    digits, bare = (first or second or ("", 0))[0], (one if first is None else other).strip()
    return (bare.lstrip("0").lower() or "0") == digits


def _opened(text: str, start: int, end: int) -> int:
    """Brackets that are opened and not closed between two places. Braces are brackets only as `\\{`, `\\}`."""
    part = text[start:end]
    opened = part.count("(") + part.count("[") + part.count("\\{")
    return opened - part.count(")") - part.count("]") - part.count("\\}")


def _latex(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(found: re.Match[str]) -> str:
    top = found[2] or found[3] or found[6]
    bottom = found[4] or found[5] or found[7]
    if len(found[0]) > 200 or not int(bottom):
        return found[0]
    return _latex(int(found[1]) + Fraction(int(top), int(bottom)))


def _repeating(found: re.Match[str]) -> str:
    first, period = found[2], found[3] or found[4] or found[5]
    scale = 10 ** len(first)
    value = Fraction(int(found[1] + first), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
    return _latex(value)


def _vulgar(found: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", found[0]).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}" if bottom else found[0]
