"""Requests of the operator to the driver: the ConfigMap `<job>-control`, polled."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from rljob_api.contract.request import REQUEST_KEY, ScaleRequest, wants_scale, wants_suspend

from rljob_trainer.cluster.environment import REQUEST_TIMEOUT_SECONDS

logger = logging.getLogger(__name__)
POLL_SECONDS = 5.0


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
            text = (found.data or {}).get(REQUEST_KEY)
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
