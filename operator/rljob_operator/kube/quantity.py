"""Kubernetes quantities, as numbers: the apiserver rewrites `0.5` to `500m`."""

import re
from decimal import Decimal

_SUFFIX = {"": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
_SUFFIX |= {letter: Decimal(1000) ** (i + 1) for i, letter in enumerate("kMGTPE")}
_SUFFIX |= {f"{letter}i": Decimal(1024) ** (i + 1) for i, letter in enumerate("KMGTPE")}
_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
)


def quantity(text: str) -> Decimal | None:
    """The number that a quantity stands for; None when the text is none."""
    match = _QUANTITY.fullmatch(text)
    return Decimal(match[1]) * _SUFFIX[match[2] or ""] if match else None


def same(one: object, other: object) -> bool:
    """Whether two scalars mean the same: equal, or equal as quantities (an integer counts as one)."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if one == other:
        return True
    if not isinstance(one, str | int | float) or not isinstance(other, str | int | float):
        return False
    first = quantity(str(one))
    return first is not None and first == quantity(str(other))
