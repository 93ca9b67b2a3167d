"""The user's own functions by import path (`package.module:name`), and where in their code something is."""

import difflib
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

from rljob_api.errors import UserError

_LIBRARIES = tuple(
    sysconfig.get_path(name) + "/"
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if sysconfig.get_path(name)
)
_OURS = str(Path(__file__).resolve().parent) + "/"


def load_function(import_path: str, field: str) -> Callable[..., Any]:
    """The callable that `field` of the manifest names as `package.module:name`.

    Raises UserError, naming the field, when the form is wrong, the module or the name is not there, the module fails
    while it is imported, or what it names cannot be called.
    """
    module_name, separator, name = import_path.partition(":")
    if not separator or not module_name or not name:
        raise UserError(f"{field}: {import_path!r} is not of the form package.module:name")
    hint: str | None = "deliver it by spec.code, or locally by `rljob run --code DIR`"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            if module_name.endswith(".py"):
                hint = f"a module is named without .py: {module_name.removesuffix('.py')}:{name}"
            raise UserError(
                f"{field}: there is no module {error.name!r} on the Python path (asked for {import_path!r})", hint=hint
            ) from error
        said = f"it needs {error.name!r}, not installed{_in_brackets(_users_line(error))}"
        raise UserError(f"{field}: importing {module_name!r} failed: {said}") from error
    except (Exception, SystemExit) as error:  # any failure of the user's module is the user's to read, as a sentence
        said = f"{type(error).__name__}: {error}{_in_brackets(_users_line(error))}"
        raise UserError(f"{field}: importing {module_name!r} failed: {said}") from error
    function = getattr(module, name, None)
    if function is None:
        close = difflib.get_close_matches(name, [other for other, value in vars(module).items() if callable(value)], 1)
        hint = f"did you mean {module_name}:{close[0]}?" if close else None
        raise UserError(f"{field}: the module {module_name!r} has no {name!r}", hint=hint)
    if not callable(function):
        raise UserError(f"{field}: {import_path!r} is of type {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Hook:
    """A function of the user's, its keyword arguments, and the field of the manifest that names it."""

    function: Callable[..., Any]
    path: str
    field: str
    args: Mapping[str, Any]

    def call(self, *given: Any) -> Any:
        """What the function returns. What it raises becomes a UserError with the exception and its line."""
        try:
            return self.function(*given, **self.args)
        except (Exception, SystemExit) as error:  # the user's function: whatever it raises is the user's to read
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            where = _in_brackets(raised_at(error, self.function))
            raise UserError(f"{self.field}: {self.path} raised {said}{where}") from error

    def wrong(self, what: str) -> UserError:
        """The error for a value that it returned: `what` completes a sentence about it."""
        where = _in_brackets(defined_at(self.function))
        return UserError(f"{self.field}: {self.path} {what}{where}", hint="see docs/hooks.md")


def load_hook(
    import_path: str,
    field: str,
    args: Mapping[str, Any],
    signature: str,
    positional: int,
    *,
    may_be_async: bool = False,
) -> Hook:
    """The function that `field` names, if it can be called with so many positional arguments and with `args`.

    Raises UserError as `load_function` does, and for a function that cannot be called that way; `signature` is what to
    write, such as `def f(inputs, **args)`.
    """
    function = load_function(import_path, field)
    if inspect.iscoroutinefunction(function) and not may_be_async:
        raise UserError(f"{field}: {import_path} is a coroutine function", hint=f"write {signature}")
    try:
        found = inspect.signature(function)
    except ValueError:  # some that are written in C do not say theirs
        return Hook(function, import_path, field, args)
    try:
        found.bind(*[None] * positional, **args)
    except TypeError as error:
        given = "".join(f", {name}=…" for name in args)
        raise UserError(
            f"{field}: {import_path}{found} cannot be called with {positional} positional "
            f"argument{'s' * (positional > 1)}{given}: {error}",
            hint=f"write {signature}",
        ) from None
    return Hook(function, import_path, field, args)


def raised_at(error: BaseException, function: Callable[..., Any]) -> str:
    """The innermost line of the user's own code that `error` came through; where the function begins when it came
    through none (what it returned was at fault). Empty for a function of this package."""
    if _is_ours(function):
        return ""
    source = _source(function)
    return _users_line(error, None if source is None else source[0]) or defined_at(function)


def defined_at(function: Callable[..., Any]) -> str:
    """Where the function begins. Empty where that cannot be told, and for a function of this package."""
    source = None if _is_ours(function) else _source(function)
    return "" if source is None else _shown(*source)


def _users_line(error: BaseException, own: str | None = None) -> str:
    """The innermost line that `error` came through outside this package and libraries, or in the file `own`; or
    empty."""
    lines = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    of_user = [(file, line) for file, line in lines if file == own or not file.startswith((*_LIBRARIES, _OURS, "<"))]
    return _shown(*of_user[-1]) if of_user else ""


def _in_brackets(where: str) -> str:
    return f" ({where})" if where else ""


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
