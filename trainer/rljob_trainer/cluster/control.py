"""Requests of the operator to the driver: the ConfigMap `<job>-control`, polled.

The operator may be of another version. What it adds to `request.json` is ignored: it waits for no request without a
limit, and takes none for done before the driver reports it.
"""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rljob_trainer.cluster.environment import REQUEST_TIMEOUT_SECONDS

logger = logging.getLogger(__name__)
POLL_SECONDS = 5.0


def wants_suspend(text: str | None, attempt: int) -> bool:
    """Whether `request.json` asks this attempt to suspend. Raises ValueError when it is not a JSON object."""
    request = _request(text)
    return bool(request.get("suspend")) and request.get("attempt", attempt) == attempt


@dataclass(frozen=True)
class ScaleRequest:
    """What the operator wants of the rollout group."""

    engines: int
    """Engines that are to serve."""
    drain: frozenset[str] = frozenset()
    """Pods that are to go: their engines get no new samples, finish what they have and end."""


def wants_scale(text: str | None, attempt: int) -> ScaleRequest | None:
    """What `request.json` asks of this attempt's engines; None: nothing. Raises ValueError when it is not readable."""
    request = _request(text)
    engines = request.get("engines")
    if engines is None or request.get("attempt", attempt) != attempt:
        return None
    if not isinstance(engines, int) or engines < 1:
        raise ValueError(f"request.json asks for {engines!r} engines")
    return ScaleRequest(engines, frozenset(map(str, request.get("drain") or ())))


def _request(text: str | None) -> dict[str, Any]:
    request = json.loads(text or "{}")
    if not isinstance(request, dict):
        raise ValueError(f"request.json is not an object: {str(text)[:80]}")
    return request


class ControlPoller:
    """Calls `on_suspend` once when the operator asks for it, and `on_scale` with each wish for engines until then."""

    def __init__(
        self,
        api: Any,
        namespace: str,
        name: str,
        attempt: int,
        on_suspend: Callable[[], None],
        interval: float = POLL_SECONDS,
        on_scale: Callable[[ScaleRequest], None] = lambda request: None,
    ) -> None:
        """`api` is a CoreV1Api."""
        self._api, self._namespace, self._name = api, namespace, name
        self._attempt, self._on_suspend, self._interval = attempt, on_suspend, interval
        self._on_scale = on_scale
        self._stop = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop polling."""
        self._stop.set()
        self._thread.join(timeout=15.0)

    def _run(self) -> None:
        while True:
            if self._poll():
                self._on_suspend()
                return
            if self._stop.wait(self._interval):
                return

    def _poll(self) -> bool:
        from kubernetes.client import ApiException

        try:
            found = self._api.read_namespaced_config_map(
                self._name, self._namespace, _request_timeout=REQUEST_TIMEOUT_SECONDS
            )
            text = (found.data or {}).get("request.json")
            suspend = wants_suspend(text, self._attempt)
            # A wish for engines that this version cannot read must not keep the driver from suspending.
            scale = None if suspend else wants_scale(text, self._attempt)
        except ApiException as error:
            if error.status != 404:  # none is there until the operator asks for something
                self._complain(error)
            return False
        except Exception as error:  # noqa: BLE001 - an apiserver that is away must not stop training; logged
            self._complain(error)
            return False
        self._failures = 0
        if scale is not None:
            self._on_scale(scale)
        return suspend

    def _complain(self, error: Exception) -> None:
        self._failures += 1
        if self._failures in (1, 10, 100):
            logger.warning("control ConfigMap %s not read (%d times in a row): %s", self._name, self._failures, error)
