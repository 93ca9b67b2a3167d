"""How much work a function does, counted: what a test of its growth can assert on any machine."""

import sys
from collections.abc import Callable


def calls(function: Callable[[], object]) -> int:
    """Calls of Python and C functions while `function` runs."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count
