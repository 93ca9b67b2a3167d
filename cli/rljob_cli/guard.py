"""Mistakes become one message on standard error and an exit code, never a traceback."""

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

import typer
from rljob_api.errors import ManifestError, UserError

from rljob_cli.exits import FAILED, INTERRUPTED, OK
from rljob_cli.output import error


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, leaving by exit codes alone."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        code = _code(lambda: command(*arguments, **options))
        if code != OK:
            raise typer.Exit(code)

    return run


def _code(call: Callable[[], None]) -> int:
    try:
        call()
    except typer.Exit as done:
        return done.exit_code
    except ManifestError as wrong:
        for line in wrong.message.splitlines():
            error(line)
        return wrong.exit_code
    except UserError as wrong:
        error(wrong.message, wrong.hint)
        return wrong.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`rljob … | head`); what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as failure:  # noqa: BLE001 - the last resort: logged in full, shown in a sentence
        error(f"rljob failed: {type(failure).__name__}: {failure}", f"the traceback is in {_log()}")
        return FAILED
    return OK


def _log() -> str:
    handle, path = tempfile.mkstemp(prefix="rljob-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return path
