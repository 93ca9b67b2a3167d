"""Values, and several ways to write each: what a verifier must find equal, and what it must not."""

from collections.abc import Callable
from fractions import Fraction

from hypothesis import strategies as st

Writing = Callable[[Fraction], str | None]
"""A value as text; None where this notation cannot write it."""


def plain(value: Fraction) -> str | None:
    return str(value.numerator) if value.denominator == 1 else None


def comma_thousands(value: Fraction) -> str | None:
    return f"{value.numerator:,}" if value.denominator == 1 else None


def thin_space_thousands(value: Fraction) -> str | None:
    return f"{value.numerator:,}".replace(",", "\\,") if value.denominator == 1 else None


def braced_thousands(value: Fraction) -> str | None:
    return f"{value.numerator:,}".replace(",", "{,}") if value.denominator == 1 else None


def slash(value: Fraction) -> str | None:
    return f"{value.numerator}/{value.denominator}" if value.denominator > 1 else None


def latex(value: Fraction) -> str | None:
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}" if value.denominator > 1 else None


def display(value: Fraction) -> str | None:
    written = latex(value)
    return written and written.replace("frac", "dfrac")


def mixed(value: Fraction) -> str | None:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    if value.denominator == 1 or whole == 0:
        return None
    return rf"{'-' if value < 0 else ''}{whole}\frac{{{rest}}}{{{value.denominator}}}"


def mixed_with_slash(value: Fraction) -> str | None:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    if value.denominator == 1 or whole == 0:
        return None
    return f"{'-' if value < 0 else ''}{whole} {rest}/{value.denominator}"


def decimal(value: Fraction) -> str | None:
    """Exact, where the denominator has no other factors than 2 and 5."""
    for digits in range(1, 7):
        scaled = value * 10**digits
        if scaled.denominator == 1:
            sign, text = "-" if value < 0 else "", str(abs(scaled.numerator)).zfill(digits + 1)
            return f"{sign}{text[:-digits]}.{text[-digits:]}"
    return None


def repeating(value: Fraction) -> str | None:
    """A period of up to six digits right behind the point."""
    whole, rest = divmod(abs(value), 1)
    for digits in range(1, 7):
        period = rest * (10**digits - 1)
        if rest and period.denominator == 1:
            sign = "-" if value < 0 else ""
            return rf"{sign}{whole}.\overline{{{str(period.numerator).zfill(digits)}}}"
    return None


def dressed(writing: Writing, dress: str) -> Writing:
    def write(value: Fraction) -> str | None:
        text = writing(value)
        return text and dress.replace("#", text)

    return write


WRITINGS: tuple[Writing, ...] = (
    plain, comma_thousands, thin_space_thousands, braced_thousands, slash, latex, display, mixed, mixed_with_slash,
    decimal, repeating, dressed(plain, "#."), dressed(latex, "#."), dressed(plain, "**#**"), dressed(slash, " # "),
    dressed(mixed, "x = #"), dressed(latex, "{#}"), dressed(plain, "#.0"),
)  # fmt: skip

NUMBERS = st.builds(
    Fraction,
    st.one_of(st.integers(-50, 50), st.integers(-(10**6), 10**6), st.integers(-(10**21), 10**21)),
    st.one_of(st.just(1), st.integers(1, 99)),
)


@st.composite
def same_value(draw: st.DrawFn) -> tuple[str, str]:
    """One value, written twice."""
    value = draw(NUMBERS)
    texts = [text for writing in WRITINGS if (text := writing(value)) is not None]
    return draw(st.sampled_from(texts)), draw(st.sampled_from(texts))


@st.composite
def other_value(draw: st.DrawFn) -> tuple[str, str]:
    """Two values that lie apart by more than verifiers round, each written somehow."""
    value = draw(NUMBERS)
    other = draw(st.one_of(st.just(-value), st.just(value + 1), NUMBERS))
    if abs(value - other) <= max(abs(value), abs(other)) / 10**5 and (value.denominator > 1 or other.denominator > 1):
        other = value + abs(value) + 1
    if value == other:
        other = value + 1
    pair = [[text for writing in WRITINGS if (text := writing(each)) is not None] for each in (value, other)]
    return draw(st.sampled_from(pair[0])), draw(st.sampled_from(pair[1]))


def bracketed(pair: tuple[str, str]) -> tuple[str, str]:
    """The two as coordinates, without what only dresses a whole answer."""
    one, other = (text.replace("**", "").removeprefix("x = ").removesuffix(".") for text in pair)
    return f"({one}, 1)", f"({other}, 1)"
