"""The driver's words in the pod's own log.

Ray runs the driver as a child of its agent and keeps its output in a file of the head; `kubectl logs` shows what the
container's first process writes. A copy goes there.
"""

import logging
import os
import sys
from typing import IO, TextIO, cast

from rljob_api.contract import environment_variables as variables

logger = logging.getLogger(__name__)


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
