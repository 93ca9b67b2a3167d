"""The cluster as commands see it: RLJobs, pods, logs. Every failure is a sentence that says what to do."""

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from rljob_api.contract import labels
from rljob_api.errors import UserError
from rljob_api.v1alpha1.job import API_VERSION, GROUP, PLURAL, VERSION

from rljob_cli.exits import ClusterError

FIELD_MANAGER = "rljob"
TIMEOUT = (5.0, 30.0)
"""Seconds to connect and to wait for an answer."""
Obj = dict[str, Any]


class Cluster:
    """A connection to the cluster of the current kubeconfig context, or of the pod that this runs in."""

    def __init__(self, namespace: str | None = None, context: str | None = None) -> None:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        configuration = client.Configuration()
        try:
            config.load_kube_config(context=context, client_configuration=configuration)
            _, active = config.list_kube_config_contexts()
            own = (active or {}).get("context", {}).get("namespace")
        except (ConfigException, TypeError, OSError) as missing:
            try:
                config.load_incluster_config(client_configuration=configuration)
                own = _own_namespace()
            except ConfigException:
                raise ClusterError(
                    f"no cluster is configured: {missing}", hint="set KUBECONFIG, or run the job here with `rljob run`"
                ) from None
        configuration.retries = False
        self.namespace = namespace or own or "default"
        self.server = str(configuration.host)
        api = client.ApiClient(configuration)
        self._core, self._custom = client.CoreV1Api(api), client.CustomObjectsApi(api)

    def apply(self, manifest: Obj, *, dry_run: bool) -> Obj:
        """Server-side apply of an RLJob with strict field validation."""
        name = manifest["metadata"]["name"]
        with self._explained(f"RLJob {name}"):
            stored = self._custom.patch_namespaced_custom_object(
                *self._place,
                name,
                manifest,
                field_manager=FIELD_MANAGER,
                field_validation="Strict",
                dry_run="All" if dry_run else None,
                _content_type="application/apply-patch+yaml",
                _request_timeout=TIMEOUT,
            )
        if stored:
            return dict(stored)
        return manifest if dry_run else self.get(name)  # The client gives no body back for 201 Created.

    def get(self, name: str) -> Obj:
        """One RLJob."""
        with self._explained(f"RLJob {name}"):
            return dict(self._custom.get_namespaced_custom_object(*self._place, name, _request_timeout=TIMEOUT))

    def jobs(self, *, all_namespaces: bool) -> list[Obj]:
        """All RLJobs of the namespace, or of the cluster."""
        with self._explained("RLJobs"):
            if all_namespaces:
                found = self._custom.list_cluster_custom_object(GROUP, VERSION, PLURAL, _request_timeout=TIMEOUT)
            else:
                found = self._custom.list_namespaced_custom_object(*self._place, _request_timeout=TIMEOUT)
            return list(found["items"])

    def suspend(self, name: str, *, suspend: bool, paused_attempt: int | None = None) -> Obj:
        """Set `spec.lifecycle.suspend`; with `paused_attempt`, end the pause of that attempt by learning health."""
        body: Obj = {"spec": {"lifecycle": {"suspend": suspend}}}
        if paused_attempt is not None:
            body["metadata"] = {"annotations": {labels.RESUME: str(paused_attempt)}}
        with self._explained(f"RLJob {name}"):
            return dict(
                self._custom.patch_namespaced_custom_object(
                    *self._place,
                    name,
                    body,
                    field_manager=FIELD_MANAGER,
                    _content_type="application/merge-patch+json",
                    _request_timeout=TIMEOUT,
                )
            )

    def pods(self, job: str, role: str) -> list[Any]:
        """Pods of one role, those of the newest attempt first."""
        with self._explained(f"the pods of RLJob {job}"):
            found = self._core.list_namespaced_pod(
                self.namespace,
                label_selector=f"{labels.JOB}={job},{labels.ROLE}={role}",
                _request_timeout=TIMEOUT,
            ).items
        return sorted(
            found, key=lambda pod: (-int((pod.metadata.labels or {}).get(labels.ATTEMPT, 0)), pod.metadata.name)
        )

    def pod(self, name: str) -> Any:
        """One pod."""
        with self._explained(f"pod {name}"):
            return self._core.read_namespaced_pod(name, self.namespace, _request_timeout=TIMEOUT)

    def create_pod(self, body: Obj) -> str:
        """Create a pod. Returns its name."""
        with self._explained(f"pod {body['metadata']['name']}"):
            made = self._core.create_namespaced_pod(self.namespace, body, _request_timeout=TIMEOUT)
        return str(made.metadata.name)

    def delete_pod(self, name: str) -> None:
        """Delete a pod."""
        with self._explained(f"pod {name}"):
            self._core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=1, _request_timeout=TIMEOUT)

    def template(self, job: str) -> Obj | None:
        """A pod template of the job, out of its retriever's Deployment or its latest RayJob; None when none is left."""
        for deployment in self._of_job(job, "apps", "deployments"):
            return dict(deployment["spec"]["template"])
        attempts = self._of_job(job, "ray.io", "rayjobs")
        latest = max(attempts, key=lambda item: str(item["metadata"]["creationTimestamp"]), default=None)
        return None if latest is None else dict(latest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"])

    def _of_job(self, job: str, group: str, plural: str) -> list[Obj]:
        """Objects of a job; none where the cluster does not serve their kind."""
        from kubernetes.client.exceptions import ApiException

        selector = f"{labels.JOB}={job}"
        with self._explained(f"the {plural} of RLJob {job}"):
            try:
                found = self._custom.list_namespaced_custom_object(
                    group, "v1", self.namespace, plural, label_selector=selector, _request_timeout=TIMEOUT
                )
            except ApiException as refused:
                if refused.status != 404:
                    raise
                return []
        return list(found["items"])

    def pod_log(self, pod: str, *, follow: bool, tail: int) -> Iterator[str]:
        """Lines of a pod's log; with `follow` until it ends or the user interrupts."""
        with self._explained(f"the log of pod {pod}"):
            response = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                follow=follow,
                tail_lines=tail,
                _preload_content=False,
                _request_timeout=None if follow else TIMEOUT,
            )
            for line in response:
                yield line.decode(errors="replace").rstrip("\n")

    def execute(self, pod: str, command: list[str]) -> Iterator[str]:
        """Lines that a command in a pod writes, until it ends."""
        from kubernetes.stream import stream

        with self._explained(f"pod {pod}"):
            session = stream(
                self._core.connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                command=command,
                stdout=True,
                stderr=True,
                stdin=False,
                tty=False,
                _preload_content=False,
            )
            pending = ""
            while session.is_open():
                session.update(timeout=1)
                text = session.read_stdout() if session.peek_stdout() else ""
                text += session.read_stderr() if session.peek_stderr() else ""
                *lines, pending = (pending + text).split("\n")
                yield from lines
            if pending:
                yield pending

    @property
    def _place(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as refused:
            raise self._sentence(what, refused) from None
        except (HTTPError, socket.gaierror, ConnectionError, ssl.SSLError) as lost:
            reason = getattr(lost, "reason", None) or lost
            raise ClusterError(
                f"the cluster at {self.server} does not answer: {reason}",
                hint="check the kubeconfig's context (`kubectl config current-context`)",
            ) from None

    def _sentence(self, what: str, refused: Any) -> UserError:
        message, details = _status(refused)
        if refused.status == 404:
            if details.get("name") and details.get("kind") in (PLURAL, "pods"):
                return ClusterError(f"{what} is not there (namespace {self.namespace})")
            if details.get("kind") == "namespaces":
                return ClusterError(f"the namespace {self.namespace} is not there")
            return ClusterError(
                f"the cluster at {self.server} does not serve {API_VERSION}",
                hint="install the operator and its CRD with Helm: charts/rljob",
            )
        if refused.status == 401:
            return ClusterError(f"the cluster at {self.server} does not know these credentials")
        if refused.status == 403:
            return ClusterError(f"not allowed: {message}")
        if refused.status == 409:
            return UserError(
                f"{what}: {message}", hint="another client owns these fields; change them there, or leave them out here"
            )
        if refused.status in (400, 422):
            causes = [f"{cause['field']}: {cause['message']}" for cause in details.get("causes", [])]
            return UserError("\n".join([f"the apiserver refuses {what}:", *(causes or [message])]))
        return ClusterError(f"{what}: the apiserver answered {refused.status}: {message}")


def _status(refused: Any) -> tuple[str, Obj]:
    try:
        body = json.loads(refused.body or "{}")
    except ValueError:
        return str(refused.reason), {}
    return str(body.get("message") or refused.reason), dict(body.get("details") or {})


def _own_namespace() -> str | None:
    try:
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None
