"""Requests to end the run early: a signal, the operator, a lost lease. The loop looks at step boundaries."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Literal

from rljob_api.contract.exit_codes import ExitCode

StopKind = Literal["suspend", "fenced", "unreachable", "unhealthy", "paused", "rollback"]
"""The last three: what learning health asks for (`lifecycle.health`)."""


class Stop(Exception):  # noqa: N818 - not an error: the run ends as asked
    """The run ends at this boundary."""

    def __init__(self, kind: StopKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: StopKind = kind
        self.reason = reason


class StopFlag:
    """Set from signal handlers and background threads; the first request stands, except that a lost lease overrides."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may arrive while the main thread holds it
        self._request: tuple[StopKind, str] | None = None
        self.guard: Callable[[], bool] = lambda: True
        """Asks whether this driver still holds its lease; on a cluster `Lease.confirm`."""

    def request(self, kind: StopKind, reason: str) -> None:
        """Ask the run to end at the next boundary."""
        with self._lock:
            if self._request is None or (kind == "fenced" and self._request[0] != "fenced"):
                self._request = (kind, reason)

    @property
    def requested(self) -> bool:
        """Whether anybody asked."""
        return self._request is not None

    @property
    def fenced(self) -> bool:
        """Whether this driver may no longer run; it then commits nothing."""
        return self._request is not None and self._request[0] == "fenced"

    @property
    def reason(self) -> str:
        """Why the run is asked to end; empty when it is not."""
        return self._request[1] if self._request else ""

    def may_write(self) -> bool:
        """Whether this driver may still write what others read. A process that was stopped for long finds out here."""
        return not self.fenced and self.guard() and not self.fenced

    def check(self) -> None:
        """Raise Stop when asked to end."""
        request = self._request
        if request is not None:
            raise Stop(*request)

    def on_signals(self) -> None:
        """SIGTERM and SIGINT ask for a suspend; a second one of either ends the process at once (exit 1)."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested:
                raise SystemExit(int(ExitCode.FAILED))
            self.request("suspend", f"received {signal.Signals(number).name}")

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)
