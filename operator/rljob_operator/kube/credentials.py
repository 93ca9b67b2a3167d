"""Who the operator is: the pod's service account, or a kubeconfig. The same for kopf's watches and our own calls."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kopf

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
REREAD_SECONDS = 60.0


class NoCredentialsError(RuntimeError):
    """There is neither a service account nor a kubeconfig."""


def login(**_: Any) -> Any:
    """A kopf.ConnectionInfo. kopf's own default would import the `kubernetes` client (40 MB) when it is installed."""
    settings = kopf.OperatorSettings()
    info = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if info is None:
        raise NoCredentialsError("neither a service account in this pod nor a kubeconfig (KUBECONFIG, ~/.kube/config)")
    return info


def headers(info: Any, clock: Callable[[], float] = time.monotonic) -> Callable[[], dict[str, str]]:
    """Authorization headers; the service account's token is read anew each minute, since the kubelet rotates it."""
    if not TOKEN_FILE.exists():
        fixed: dict[str, str] = info.as_http_headers()
        return lambda: fixed
    cached: tuple[float, dict[str, str]] = (float("-inf"), {})

    def current() -> dict[str, str]:
        nonlocal cached
        if clock() - cached[0] > REREAD_SECONDS:
            cached = (clock(), {"Authorization": f"Bearer {TOKEN_FILE.read_text(encoding='utf-8').strip()}"})
        return cached[1]

    return current
