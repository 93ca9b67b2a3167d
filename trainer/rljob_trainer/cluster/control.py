"""Requests of the operator to the driver: the ConfigMap `<job>-control`, polled."""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from rljob_trainer.cluster.environment import REQUEST_TIMEOUT_SECONDS

logger = logging.getLogger(__name__)
POLL_SECONDS = 5.0


def wants_suspend(text: str | None, attempt: int) -> bool:
    """Whether `request.json` asks this attempt to suspend. Raises ValueError when it is not a JSON object."""
    if not text:
        return False
    request = json.loads(text)
    if not isinstance(request, dict):
        raise ValueError(f"request.json is not an object: {text[:80]}")
    return bool(request.get("suspend")) and request.get("attempt", attempt) == attempt


class ControlPoller:
    """Calls `on_suspend` once when the operator asks for it."""

    def __init__(
        self,
        api: Any,
        namespace: str,
        name: str,
        attempt: int,
        on_suspend: Callable[[], None],
        interval: float = POLL_SECONDS,
    ) -> None:
        """`api` is a CoreV1Api."""
        self._api, self._namespace, self._name = api, namespace, name
        self._attempt, self._on_suspend, self._interval = attempt, on_suspend, interval
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
            suspend = wants_suspend((found.data or {}).get("request.json"), self._attempt)
        except ApiException as error:
            if error.status != 404:  # none is there until the operator asks for something
                self._complain(error)
            return False
        except Exception as error:  # noqa: BLE001 - an apiserver that is away must not stop training; logged
            self._complain(error)
            return False
        self._failures = 0
        return suspend

    def _complain(self, error: Exception) -> None:
        self._failures += 1
        if self._failures in (1, 10, 100):
            logger.warning("control ConfigMap %s not read (%d times in a row): %s", self._name, self._failures, error)
