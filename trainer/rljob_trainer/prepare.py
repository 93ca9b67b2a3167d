"""Run a job's `data.prepare` once: `python -m rljob_trainer.prepare --job F --dir DIR`.

The function runs in a process of its own. `prepared.json` in the job's directory, written last, says what was run;
when it names the same function and arguments, nothing is done.
"""

import argparse
import hashlib
import inspect
import json
import logging
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rljob_api.contract.job_document import load_document
from rljob_api.errors import UserError
from rljob_api.v1alpha1.data import PrepareSpec

from rljob_trainer import logs
from rljob_trainer.atomic_files import write_file
from rljob_trainer.cluster.preparation import report
from rljob_trainer.file_lock import exclusive

log = logging.getLogger(__name__)

MARKER = "prepared.json"
LOCK = ".prepare.lock"
_EXIT_SECONDS = 30.0


def fingerprint(spec: PrepareSpec) -> str:
    """Of the function's name and arguments."""
    text = json.dumps([spec.function, spec.args], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_prepared(spec: PrepareSpec, job_dir: str | Path) -> bool:
    """Whether this function has already run here with these arguments."""
    return _prepared_fingerprint(Path(job_dir) / MARKER) == fingerprint(spec)


def prepare(spec: PrepareSpec, job_dir: str | Path) -> bool:
    """Run the function unless it has been. Returns whether it ran. Several processes may call this at once.

    Raises UserError when the function cannot be imported, raises, takes longer than `timeoutSeconds`, or when the
    directory holds commits trained on what another function or other arguments prepared.
    """
    directory = Path(job_dir)
    directory.mkdir(parents=True, exist_ok=True)
    if is_prepared(spec, directory):
        return False
    with exclusive(directory / LOCK, spec.timeout_seconds + _EXIT_SECONDS):
        if is_prepared(spec, directory):
            return False
        if (directory / MARKER).is_file() and any(directory.glob("attempts/*/commits/*/manifest.json")):
            raise UserError(
                f"spec.data.prepare: {directory} holds commits that were trained on data prepared otherwise "
                f"({MARKER} names another function or other arguments)",
                hint="use another name or directory for the changed job, or put the old arguments back",
            )
        (directory / MARKER).unlink(missing_ok=True)
        started = time.monotonic()
        _run(spec, directory)
        seconds = round(time.monotonic() - started, 3)
        content = {"function": spec.function, "args": spec.args, "fingerprint": fingerprint(spec), "seconds": seconds}
        write_file(directory / MARKER, (json.dumps(content, indent=1) + "\n").encode())
        log.info("prepared by %s in %.1f s", spec.function, seconds)
    return True


def _prepared_fingerprint(marker: Path) -> str | None:
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        log.warning("%s is damaged: preparing again", marker)
        return None
    return content.get("fingerprint") if isinstance(content, dict) else None


def _run(spec: PrepareSpec, directory: Path) -> None:
    """Call the function in a fresh process, so that it can be ended when it takes too long."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, spec.function, str(directory), spec.args), name="prepare")
    process.start()
    there.close()
    try:
        if not here.poll(spec.timeout_seconds):
            raise UserError(
                f"spec.data.prepare: {spec.function} took longer than timeoutSeconds = {spec.timeout_seconds}",
                hint="raise spec.data.prepare.timeoutSeconds",
            )
        try:
            error = here.recv()
        except EOFError:
            process.join(_EXIT_SECONDS)
            raise UserError(
                f"spec.data.prepare: the process of {spec.function} died (exit code {process.exitcode})",
                hint="exit code -9 is mostly a lack of memory",
            ) from None
        process.join(_EXIT_SECONDS)
    finally:
        if process.is_alive():
            process.kill()
            process.join(_EXIT_SECONDS)
        here.close()
    if error is not None:
        raise UserError(str(error["message"]), hint=error["hint"])


def _call(answer: Connection, function: str, directory: str, arguments: dict[str, Any]) -> None:
    """In the child: run the function and send None, or what went wrong."""
    from rljob_trainer.hooks import load_function

    problem: dict[str, str | None] | None = None
    try:
        called = load_function(function, "spec.data.prepare.function")
        _check_arguments(called, function, directory, arguments)
        called(directory, **arguments)
    except UserError as error:
        problem = {"message": error.message, "hint": error.hint}
    except Exception as error:  # noqa: BLE001 - the function is the user's: it is reported, with its traceback
        traceback.print_exc()
        problem = {"message": f"spec.data.prepare: {function} failed: {type(error).__name__}: {error}", "hint": None}
    answer.send(problem)
    answer.close()


def _check_arguments(called: Callable[..., Any], function: str, directory: str, arguments: dict[str, Any]) -> None:
    signature = inspect.signature(called)
    try:
        signature.bind(directory, **arguments)
    except TypeError as error:
        known = ", ".join(name for name in list(signature.parameters)[1:])
        raise UserError(f"spec.data.prepare.args: {function}: {error}", hint=f"it takes {known}") from None


def main(arguments: list[str] | None = None) -> int:
    """Entry point; exit code 2 for a mistake in the job."""
    parser = argparse.ArgumentParser(prog="python -m rljob_trainer.prepare")
    parser.add_argument("--job", required=True, help="RLJob manifest (YAML or JSON)")
    parser.add_argument("--dir", required=True, help="the job's directory")
    options = parser.parse_args(arguments)
    logs.configure("prepare", form="%(levelname)s %(message)s")
    try:
        spec = load_document(options.job, ("spec", "data", "prepare")).spec.data.prepare
        if spec is None:
            log.info("the job has no spec.data.prepare: nothing to do")
        else:
            report("data")
            if not prepare(spec, options.dir):
                log.info("already prepared")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
