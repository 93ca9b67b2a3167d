"""Where in a user's code something is: `my_rewards.py:14`, as the Python path reaches the file."""

import inspect
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb
from typing import Any

_LIBRARIES = tuple(
    sysconfig.get_path(name) + "/"
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if sysconfig.get_path(name)
)
_OURS = str(Path(__file__).resolve().parents[1]) + "/"


def raised_at(error: BaseException, function: Callable[..., Any]) -> str:
    """The innermost line of the user's own code that `error` came through; where the function begins when it came
    through none (what it returned was at fault). Empty for a function of this package."""
    if _is_ours(function):
        return ""
    source = _source(function)
    own = None if source is None else source[0]
    lines = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    of_user = [(file, line) for file, line in lines if file == own or not file.startswith((*_LIBRARIES, _OURS, "<"))]
    return _shown(*of_user[-1]) if of_user else defined_at(function)


def defined_at(function: Callable[..., Any]) -> str:
    """Where the function begins. Empty where that cannot be told, and for a function of this package."""
    source = None if _is_ours(function) else _source(function)
    return "" if source is None else _shown(*source)


def _source(function: Callable[..., Any]) -> tuple[str, int] | None:
    function = inspect.unwrap(getattr(function, "func", function))  # a partial, a decorated function
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return None if code is None else (code.co_filename, code.co_firstlineno)


def _is_ours(function: Callable[..., Any]) -> bool:
    return str(getattr(function, "__module__", "")).startswith("rljob_trainer.")


def _shown(file: str, line: int) -> str:
    folders = sorted((folder.rstrip("/") + "/" for folder in sys.path if folder), key=len, reverse=True)
    folder = next((folder for folder in folders if file.startswith(folder)), "")
    return f"{file[len(folder) :]}:{line}"
