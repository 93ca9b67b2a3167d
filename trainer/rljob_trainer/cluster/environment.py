"""Whether the driver runs in a pod of an RLJob, and the API client with limits on every call."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rljob_api.contract import environment_variables as variables
from rljob_api.contract import names

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
    if "KUBERNETES_SERVICE_HOST" not in environ or variables.NAME not in environ:
        return None
    name = environ[variables.NAME]
    return ClusterEnvironment(
        name=name,
        namespace=environ.get(variables.NAMESPACE, "default"),
        uid=environ.get(variables.UID, ""),
        progress_config_map=environ.get(variables.PROGRESS_CONFIG_MAP),
        control_config_map=environ.get(variables.CONTROL_CONFIG_MAP, names.control(name)),
        lease=environ.get(variables.LEASE),
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
