"""How far the preparation is, for the RLJob's status: a patch of the progress ConfigMap, at most every few seconds.

By the standard library alone, since the retriever's image has no Kubernetes client; nothing happens outside a cluster.
"""

import json
import logging
import os
import ssl
import time
import urllib.request
from pathlib import Path

from rljob_api.contract import environment_variables as variables
from rljob_api.contract.progress import PREPARATION_KEY, Preparation

log = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 5.0
_last = float("-inf")


def report(stage: str, done: int = 0, total: int = 0) -> None:
    """Say that `done` of `total` bytes of a stage are made (0 of 0: not known). The last word may be lost."""
    global _last
    name, host = os.environ.get(variables.PROGRESS_CONFIG_MAP), os.environ.get("KUBERNETES_SERVICE_HOST")
    if not name or not host or time.monotonic() - _last < INTERVAL_SECONDS:
        return
    _last = time.monotonic()
    try:
        _patch(
            f"https://{_host(host)}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}",
            name,
            Preparation.of(stage, done, total).to_json(),
        )
    except OSError as error:
        log.warning("the progress could not be reported: %s", error)


def _patch(server: str, name: str, content: str) -> None:
    token = (ACCOUNT / "token").read_text(encoding="utf-8").strip()
    request = urllib.request.Request(
        f"{server}/api/v1/namespaces/{os.environ[variables.NAMESPACE]}/configmaps/{name}",
        data=json.dumps({"data": {PREPARATION_KEY: content}}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
        method="PATCH",
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context):
        pass


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
