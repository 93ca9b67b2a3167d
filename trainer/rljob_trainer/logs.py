"""Log lines of a job's processes: on a cluster one JSON object a line, in the pod's own log; elsewhere plain text.

Each JSON line says where it comes from: job, attempt, role, index (of a rank or an engine) and the step it stands at.

Ray runs a job's processes as children of its agent and keeps their output in files of its own; `kubectl logs` shows
what the container's first process writes. A copy of the output goes there.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, TextIO, cast

from rljob_api.contract import environment_variables as variables

logger = logging.getLogger(__name__)
PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_step: int | None = None


def on_cluster(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs in a pod of a job."""
    return variables.NAME in environ


def at_step(step: int) -> None:
    """The step, or the policy version of an engine, that lines from here on belong to."""
    global _step
    _step = step


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, role: str, index: int | None = None, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        attempt = environ.get(variables.ATTEMPT)
        self._where = {
            "job": environ.get(variables.NAME),
            "attempt": int(attempt) if attempt and attempt.isdigit() else None,
            "role": role,
            "index": index,
        }

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._where,
            "step": _step,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False)


def configure(role: str, index: int | None = None, *, stream: IO[str] | None = None, form: str = PLAIN) -> None:
    """Set up the root logger of a process; what it prints besides reaches the pod's log as it is.

    Elsewhere than on a cluster: `form` to `stream` (standard error), unless the root logger is set up already.
    """
    if not on_cluster():
        logging.basicConfig(level=logging.INFO, format=form, stream=stream or sys.stderr)
        return
    copy_output_to_pod_log()
    logging.basicConfig(level=logging.INFO, handlers=[json_handler(role, index)], force=True)


def json_handler(role: str, index: int | None = None) -> logging.Handler:
    """Writes JSON lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(role, index))
    return handler


class LineLogger:
    """A text stream whose lines become log lines, for what would otherwise print."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._pending = logger, ""

    def write(self, text: str) -> int:
        """Log every line that is whole."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in filter(None, lines):
            self._logger.info("%s", line)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back but an unfinished line."""


def copy_output_to_pod_log() -> None:
    """Copy standard output and error to the file that RLJOB_POD_LOG names, if any. A copy that fails is only logged."""
    path = os.environ.get(variables.POD_LOG)
    if not path:
        return
    try:
        copy = open(path, "a", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    except OSError as error:
        logger.warning("no copy of the output in the pod's log: %s", error)
        return
    sys.stdout = cast(TextIO, _Both(sys.stdout, copy))
    sys.stderr = cast(TextIO, _Both(sys.stderr, copy))


class _Both:
    """A text stream that writes to two; the first one's attributes are its own."""

    def __init__(self, stream: TextIO, copy: IO[str]) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        self._copy.write(text)
        self._copy.flush()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
