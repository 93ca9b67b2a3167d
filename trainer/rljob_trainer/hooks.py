"""Custom functions by import path (`package.module:name`): generate, reward, importance-sampling, prepare."""

import importlib
from collections.abc import Callable
from typing import Any

from rljob_api.manifest.errors import UserError


def load_function(import_path: str, field: str) -> Callable[..., Any]:
    """The callable that `field` of the manifest names as `package.module:name`.

    Raises UserError, naming the field, when the form is wrong, the module or the name is not there, the module fails
    while it is imported, or what it names cannot be called.
    """
    module_name, separator, name = import_path.partition(":")
    if not separator or not module_name or not name:
        raise UserError(f"{field}: {import_path!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UserError(
                f"{field}: there is no module {error.name!r} on the Python path (asked for {import_path!r})",
                hint="deliver it by spec.code, or locally by `rljob run --code DIR`",
            ) from error
        raise UserError(f"{field}: importing {module_name!r} failed: it needs {error.name!r}, not installed") from error
    except Exception as error:  # any failure of the user's module is the user's to read, as a sentence
        raise UserError(f"{field}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if function is None:
        raise UserError(f"{field}: the module {module_name!r} has no {name!r}")
    if not callable(function):
        raise UserError(f"{field}: {import_path!r} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]
