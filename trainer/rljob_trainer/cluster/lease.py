"""The job's Lease: of all drivers that could run, one may.

The operator says by the annotation `rljob.io/attempt` which attempt may hold it. A driver of another attempt is
refused at once; one that finds another incarnation of its own attempt waits until that one's lease has run out.
Storage is fenced separately: each incarnation writes beneath its own directory only.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from rljob_api.contract import labels

from rljob_trainer.cluster.environment import REQUEST_TIMEOUT_SECONDS

logger = logging.getLogger(__name__)
DURATION_SECONDS = 120
RENEW_SECONDS = 10.0
WRITES = 5
"""Times that a renewal which met another write is tried again."""
CONFIRMED_SECONDS = 1.0
"""For so long after it was asked the apiserver is not asked again who holds the lease."""


class LeaseLostError(RuntimeError):
    """This driver may not run: the lease is another's."""


class LeaseUnreachableError(RuntimeError):
    """The apiserver has not answered for longer than the lease lasts."""


class Lease:
    """Takes and keeps the Lease `name` for the incarnation `<attempt>/<incarnation>`."""

    def __init__(
        self,
        api: Any,
        namespace: str,
        name: str,
        attempt: int,
        incarnation: str,
        *,
        duration: int = DURATION_SECONDS,
        renew: float = RENEW_SECONDS,
        on_lost: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`api` is a CoordinationV1Api; `on_lost` is called once, from the renewing thread."""
        self._api, self._namespace, self._name = api, namespace, name
        self._attempt, self.holder = attempt, f"{attempt}/{incarnation}"
        self._duration, self._renew, self._on_lost = duration, renew, on_lost
        self._stop = threading.Event()
        self._renewed = self._confirmed = time.monotonic()
        self._thread: threading.Thread | None = None

    def acquire(self, limit: float = 600.0) -> None:
        """Take the lease and keep renewing it in the background.

        Raises LeaseLostError when the operator wants another attempt, or when another holder of this attempt keeps
        renewing for `limit` seconds; LeaseUnreachableError when the apiserver does not answer within `limit`.
        """
        deadline = time.monotonic() + limit
        while True:
            try:
                wait = self._try()
            except _UnreachableError as error:
                wait, reason = 2.0, str(error)
                if time.monotonic() + wait > deadline:
                    raise LeaseUnreachableError(
                        f"lease {self._name}: no answer from the apiserver within {limit:.0f} s: {reason}"
                    ) from error
            if wait == 0.0:
                break
            if time.monotonic() + wait > deadline:
                raise LeaseLostError(f"lease {self._name} was held by another driver for {limit:.0f} s")
            self._stop.wait(min(wait, 5.0))
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def confirm(self) -> bool:
        """Whether this driver may write now, asked of the apiserver unless that was just done.

        A process that was stopped (a frozen node, SIGSTOP) and wakes up goes on before its renewing thread has looked.
        False when the lease is another's, or when nobody answers for longer than it lasts; `on_lost` has been told
        then.
        """
        if time.monotonic() - max(self._renewed, self._confirmed) < CONFIRMED_SECONDS:
            return True
        error: Exception
        try:
            lease = self._read()
            self._check_attempt(lease)
            if lease.spec is not None and lease.spec.holder_identity == self.holder:
                self._confirmed = time.monotonic()
                return True
            error = LeaseLostError(f"lease {self._name} was taken by another driver")
        except LeaseLostError as lost:
            error = lost
        except _UnreachableError as unreachable:
            silent = time.monotonic() - max(self._renewed, self._confirmed)
            if silent <= self._duration:
                return True
            error = LeaseUnreachableError(
                f"lease {self._name}: the apiserver has not answered for {silent:.0f} s: {unreachable}"
            )
        self._on_lost(error)
        return False

    def release(self) -> None:
        """Stop renewing and give the lease up, if the apiserver answers; else it runs out."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=15.0)
        try:
            lease = self._read()
            if lease.spec is not None and lease.spec.holder_identity == self.holder:
                lease.spec.holder_identity = None
                self._replace(lease)
        except (_UnreachableError, LeaseLostError) as error:
            logger.warning("lease not given up, it will run out: %s", error)

    def _keep(self) -> None:
        while not self._stop.wait(self._renew):
            try:
                if not self._held():
                    self._on_lost(LeaseLostError(f"lease {self._name} was taken by another driver"))
                    return
            except LeaseLostError as error:
                self._on_lost(error)
                return
            except _UnreachableError as error:
                silent = time.monotonic() - self._renewed
                logger.warning("lease not renewed for %.0f s: %s", silent, error)
                if silent > self._duration:
                    self._on_lost(
                        LeaseUnreachableError(f"lease {self._name}: the apiserver has not answered for {silent:.0f} s")
                    )
                    return

    def _held(self) -> bool:
        """Renew. False when another driver holds the lease."""
        # A write of the operator's at the same moment is no loss.
        return any(self._try() == 0.0 for _ in range(WRITES))

    def _try(self) -> float:
        """Take or renew. 0.0: held; otherwise the seconds after which another try may succeed."""
        lease = self._read()
        self._check_attempt(lease)
        now = datetime.now(UTC)
        spec = lease.spec
        if spec is not None and spec.holder_identity and spec.holder_identity != self.holder:
            held_attempt = spec.holder_identity.split("/", 1)[0]
            if held_attempt == str(self._attempt):
                remaining = _remaining(spec, now)
                if remaining > 0.0:
                    return remaining
        if spec is None:
            from kubernetes import client

            spec = lease.spec = client.V1LeaseSpec()
        if spec.holder_identity != self.holder:
            spec.acquire_time = now
            spec.lease_transitions = (spec.lease_transitions or 0) + 1
        spec.holder_identity, spec.renew_time, spec.lease_duration_seconds = self.holder, now, self._duration
        if not self._replace(lease):
            return 0.5
        self._renewed = time.monotonic()
        return 0.0

    def _check_attempt(self, lease: Any) -> None:
        allowed = (lease.metadata.annotations or {}).get(labels.ATTEMPT)
        if allowed is not None and allowed != str(self._attempt):
            raise LeaseLostError(f"lease {self._name} is for attempt {allowed}; this driver is attempt {self._attempt}")

    def _read(self) -> Any:
        from kubernetes.client import ApiException

        try:
            return self._api.read_namespaced_lease(
                self._name, self._namespace, _request_timeout=REQUEST_TIMEOUT_SECONDS
            )
        except ApiException as error:
            if error.status in (403, 404):
                raise LeaseLostError(f"lease {self._name} cannot be read ({error.status} {error.reason})") from error
            raise _UnreachableError(f"{error.status} {error.reason}") from error
        except Exception as error:  # urllib3 and TLS errors, token file being replaced
            raise _UnreachableError(str(error)) from error

    def _replace(self, lease: Any) -> bool:
        """False: somebody else wrote in between."""
        from kubernetes.client import ApiException

        try:
            self._api.replace_namespaced_lease(
                self._name, self._namespace, lease, _request_timeout=REQUEST_TIMEOUT_SECONDS
            )
        except ApiException as error:
            if error.status == 409:
                return False
            raise _UnreachableError(f"{error.status} {error.reason}") from error
        except Exception as error:
            raise _UnreachableError(str(error)) from error
        return True


class _UnreachableError(Exception):
    """The apiserver gave no usable answer."""


def _remaining(spec: Any, now: datetime) -> float:
    if spec.renew_time is None:
        return 0.0
    age = float((now - spec.renew_time).total_seconds())
    return max(0.0, float(spec.lease_duration_seconds or DURATION_SECONDS) - age)
