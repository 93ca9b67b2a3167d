"""Who may do what, asked of the real apiserver (SubjectAccessReviews): every verb on every resource that it serves.

The tables say all that is allowed. What is not in them must be refused.
"""

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rljob_api.v1alpha1.job import RLJob
from rljob_operator.resources import rbac
from rljob_operator.resources.context import Context
from rljob_operator.settings import Settings

from e2e.cluster import binaries
from e2e.cluster.paths import Paths
from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for
from e2e.tests.corpus import good

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
READ = {"get", "list", "watch"}
Right = tuple[str, str, str]
"""Group, resource (with its subresource), verb."""

OPERATOR = {
    ("rljob.io", "rljobs"): READ | {"patch", "delete"},
    ("rljob.io", "rljobs/status"): {"get", "patch"},
    ("ray.io", "rayjobs"): READ | {"create", "patch", "delete"},
    ("ray.io", "rayclusters"): READ | {"patch"},
    ("apps", "deployments"): READ | {"create", "patch", "delete"},
    ("batch", "jobs"): READ | {"create", "delete"},
    ("", "pods"): READ,
    ("", "configmaps"): READ | {"create", "patch", "update"},
    ("coordination.k8s.io", "leases"): READ | {"create", "patch", "update"},
    ("", "services"): READ | {"create", "patch"},
    ("", "serviceaccounts"): READ | {"create", "patch"},
    ("", "persistentvolumeclaims"): READ | {"create", "patch"},
    ("rbac.authorization.k8s.io", "roles"): READ | {"create", "patch"},
    ("rbac.authorization.k8s.io", "rolebindings"): READ | {"create", "patch"},
    ("autoscaling", "horizontalpodautoscalers"): READ | {"create", "patch", "delete"},
    ("policy", "poddisruptionbudgets"): READ | {"create", "patch", "delete"},
    ("networking.k8s.io", "networkpolicies"): READ | {"create", "patch"},
    ("", "events"): {"create"},
    ("", "namespaces"): READ,
    ("apiextensions.k8s.io", "customresourcedefinitions"): READ,
}
EVERYBODY = {
    ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
    ("authentication.k8s.io", "selfsubjectreviews", "create"),
}
"""What the apiserver lets every account do: ask about itself."""


@dataclass(frozen=True)
class Cluster:
    """The rights of a release and of one job's driver, on the real apiserver."""

    kubectl: Kubectl
    system: str
    """Namespace of the operator."""
    served: list[tuple[str, str]]
    """Group and resource of all that the apiserver serves."""

    def allowed(
        self, user: str, rights: Iterable[Right], *, name: str = "", namespace: str | None = None
    ) -> set[Right]:
        """Those of the rights that the user has."""
        groups = ["system:authenticated", "system:serviceaccounts"] if ":" in user else ["system:authenticated"]
        asked = list(rights)
        items = []
        for group, resource, verb in asked:
            plural, _, sub = resource.partition("/")
            attributes = {"group": group, "resource": plural, "subresource": sub, "verb": verb, "name": name}
            attributes["namespace"] = self.kubectl.namespace if namespace is None else namespace
            spec = {"user": user, "groups": groups, "resourceAttributes": attributes}
            kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
            items.append(kind | {"metadata": {}, "spec": spec})
        body = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        answers = _documents(self.kubectl("create", "-o", "json", "-f", "-", stdin=body, seconds=240))
        assert len(answers) == len(asked)
        return {right for right, answer in zip(asked, answers, strict=True) if answer["status"]["allowed"]}

    def everything(self) -> list[Right]:
        """Every verb on everything that is served."""
        return [(group, resource, verb) for group, resource in self.served for verb in VERBS]


@pytest.fixture(scope="module")
def cluster(installed_crd: Kubectl) -> Iterator[Cluster]:
    """A release's RBAC objects and those of a job's driver, without any pod."""
    built = binaries.program(Paths.from_env(), "helm")
    helm = shutil.which("helm") or (str(built) if built.exists() else None)
    if helm is None:
        pytest.skip("no helm on the PATH nor in RLJob's cache")
    tag = uuid.uuid4().hex[:8]
    kubectl = Kubectl(installed_crd.kubeconfig, f"team-{tag}")
    system = f"rljob-{tag}"
    for namespace in (system, kubectl.namespace):
        kubectl("create", "namespace", namespace)
    done = subprocess.run(
        [helm, "template", "rljob", str(ROOT / "charts/rljob"), "--namespace", system],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rendered = [item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item]
    kinds = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")
    ours = [i for i in rendered if i["kind"] in kinds and "helm.sh/hook" not in i["metadata"].get("annotations", {})]
    assert len(ours) == 5
    manifest = good("cpu") | {"metadata": {"name": "good", "namespace": kubectl.namespace}}
    context = Context(RLJob.model_validate(manifest), kubectl.namespace, "none", Settings())
    drivers = [rbac.service_account(context), rbac.role(context), rbac.role_binding(context)]
    for item in drivers:
        del item["metadata"]["ownerReferences"]  # there is no RLJob
    Kubectl(kubectl.kubeconfig, system).apply(yaml.safe_dump_all(ours))
    kubectl.apply(yaml.safe_dump_all(json.loads(json.dumps(drivers))))
    binding = ("--serviceaccount", f"{kubectl.namespace}:nobody")
    kubectl("create", "rolebinding", "alice", "--clusterrole=edit", "--user=alice", *binding)
    kubectl("create", "rolebinding", "victor", "--clusterrole=view", "--user=victor")
    yield Cluster(kubectl, system, _served(kubectl))
    for item in ours:
        if item["kind"].startswith("Cluster"):
            kubectl("delete", item["kind"], item["metadata"]["name"], "--ignore-not-found")
    for namespace in (system, kubectl.namespace):
        kubectl("delete", "namespace", namespace, "--wait=false")


def _documents(text: str) -> list[dict[str, Any]]:
    """JSON documents one after the other: kubectl prints what is not stored one by one."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def _served(kubectl: Kubectl) -> list[tuple[str, str]]:
    found = {("ray.io", "rayjobs"), ("ray.io", "rayclusters")}  # also where KubeRay is not installed
    groups = json.loads(kubectl("get", "--raw", "/apis"))["groups"]
    paths = [("", "/api/v1")] + [(g["name"], f"/apis/{g['preferredVersion']['groupVersion']}") for g in groups]
    for group, path in paths:
        found |= {(group, resource["name"]) for resource in json.loads(kubectl("get", "--raw", path))["resources"]}
    assert len(found) > 80
    return sorted(found)


def test_the_operator_may_do_this_and_nothing_else(cluster: Cluster) -> None:
    account = f"system:serviceaccount:{cluster.system}:rljob-operator"
    allowed = cluster.allowed(account, cluster.everything())
    expected = {(group, resource, verb) for (group, resource), verbs in OPERATOR.items() for verb in verbs}
    assert allowed - EVERYBODY == expected
    dangerous = [
        ("", "secrets", "get"),
        ("", "secrets", "list"),
        ("", "pods", "create"),
        ("", "pods/exec", "create"),
        ("", "pods/log", "get"),
        ("", "nodes", "get"),
        ("", "serviceaccounts/token", "create"),
        ("", "serviceaccounts", "impersonate"),
        ("", "users", "impersonate"),
        ("rbac.authorization.k8s.io", "roles", "escalate"),
        ("rbac.authorization.k8s.io", "roles", "bind"),
        ("rbac.authorization.k8s.io", "clusterroles", "create"),
        ("apiextensions.k8s.io", "customresourcedefinitions", "patch"),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations", "create"),
    ]
    assert cluster.allowed(account, dangerous) == set()


def test_a_driver_may_write_its_report_and_hold_its_lease(cluster: Cluster) -> None:
    account = f"system:serviceaccount:{cluster.kubectl.namespace}:good-driver"
    own = {
        ("", "configmaps", "good-progress"): {"get", "patch", "update"},
        ("", "configmaps", "good-control"): {"get"},
        ("coordination.k8s.io", "leases", "good-driver"): {"get", "patch", "update"},
    }
    for (group, resource, name), verbs in own.items():
        rights = [(group, resource, verb) for verb in VERBS]
        assert cluster.allowed(account, rights, name=name) == {(group, resource, verb) for verb in verbs}, name
        assert cluster.allowed(account, rights, name=name, namespace="default") == set(), "in another namespace"
        other = name.replace("good", "other")
        assert cluster.allowed(account, rights, name=other) == set(), "of another job"


def test_a_driver_may_do_nothing_else(cluster: Cluster) -> None:
    account = f"system:serviceaccount:{cluster.kubectl.namespace}:good-driver"
    assert cluster.allowed(account, cluster.everything()) - EVERYBODY == set()


def test_who_edits_a_namespace_edits_its_jobs_but_not_what_is_said_of_them(cluster: Cluster) -> None:
    rights = [("rljob.io", resource, verb) for resource in _OF_JOBS for verb in VERBS]
    wanted = {("rljob.io", "rljobs", verb) for verb in READ | {"create", "update", "patch", "delete"}}
    wanted |= {("rljob.io", "rljobs/scale", verb) for verb in READ | {"update", "patch"}}
    wanted |= {("rljob.io", "rljobs/status", verb) for verb in READ}
    # The controller that gathers the rights of `edit` takes a moment.
    wait_for(
        "the rights of edit", lambda: ("rljob.io", "rljobs", "create") in cluster.allowed("alice", rights), seconds=30
    )
    assert cluster.allowed("alice", rights) == wanted
    assert cluster.allowed("alice", rights, namespace="default") == set()


def test_who_views_a_namespace_changes_nothing(cluster: Cluster) -> None:
    rights = [("rljob.io", resource, verb) for resource in _OF_JOBS for verb in VERBS]
    wanted = {("rljob.io", resource, verb) for resource in ("rljobs", "rljobs/status", "rljobs/scale") for verb in READ}
    wait_for(
        "the rights of view", lambda: ("rljob.io", "rljobs", "get") in cluster.allowed("victor", rights), seconds=30
    )
    assert cluster.allowed("victor", rights) == wanted


_OF_JOBS = ("rljobs", "rljobs/status", "rljobs/scale", "rljobs/finalizers")
