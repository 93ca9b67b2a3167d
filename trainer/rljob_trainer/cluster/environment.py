"""Whether the driver runs in a pod of an RLJob, and the API client with limits on every call."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REQUEST_TIMEOUT_SECONDS = (3.0, 5.0)
"""Time limits of one API call: to connect, and between bytes."""


@dataclass(frozen=True)
class ClusterEnvironment:
    """Names of the objects that the operator made for this job."""

    name: str
    namespace: str
    uid: str
    progress_config_map: str | None
    control_config_map: str
    lease: str | None


def cluster_environment(environ: Mapping[str, str] = os.environ) -> ClusterEnvironment | None:
    """The job's objects as the pod's environment names them; None outside a cluster."""
    if "KUBERNETES_SERVICE_HOST" not in environ or "RLJOB_NAME" not in environ:
        return None
    name = environ["RLJOB_NAME"]
    return ClusterEnvironment(
        name=name,
        namespace=environ.get("RLJOB_NAMESPACE", "default"),
        uid=environ.get("RLJOB_UID", ""),
        progress_config_map=environ.get("RLJOB_PROGRESS_CONFIGMAP"),
        control_config_map=environ.get("RLJOB_CONTROL_CONFIGMAP", f"{name}-control"),
        lease=environ.get("RLJOB_LEASE"),
    )


def api_client() -> Any:
    """A `kubernetes.client.ApiClient` of the pod's service account, without urllib3's own retries.

    The token is read anew from its file as it is rotated.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    config.load_incluster_config(client_configuration=configuration)
    configuration.retries = False
    return client.ApiClient(configuration)
