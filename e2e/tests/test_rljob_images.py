"""The images as a restricted pod sees them: non-root, read-only root, and nothing in them that should not be there."""

import json
import os

import pytest
import yaml

from e2e.support.kubectl import Kubectl
from e2e.support.wait import wait_for
from images.builders import choose

pytestmark = pytest.mark.cluster
REGISTRY, TAG = os.environ.get("RLJOB_E2E_REGISTRY", "rljob"), os.environ.get("RLJOB_E2E_TAG", "dev")

EVERYWHERE = """
import importlib.util, os, pathlib, shutil, sys
assert os.getuid() == os.getgid() == 65532, os.getuid()
try:
    pathlib.Path("/opt/rljob/probe").touch()
    sys.exit("the root file system can be written to")
except OSError:
    pass
tools = [tool for tool in ("pip", "pip3", "uv", "gcc", "cc", "ld", "make", "git") if shutil.which(tool)]
assert not tools, tools
assert importlib.util.find_spec("pip") is None
def absent(*names):
    found = [name for name in names if importlib.util.find_spec(name)]
    assert not found, found
def all_compiled():
    import importlib.machinery
    import rljob_api.v1alpha1.job as module
    assert os.path.exists(importlib.util.cache_from_source(module.__file__)), "not compiled"
all_compiled()
"""
PROGRAMS = {
    "operator": """
absent("torch", "ray", "transformers", "numpy", "faiss")
import rljob_operator.main, rljob_cli
""",
    "retriever": """
absent("torch", "ray", "transformers", "kopf")
import faiss, numpy, rljob_trainer.prepare, rljob_trainer.retriever.__main__
index = faiss.IndexFlatIP(8)
index.add(numpy.eye(8, dtype="float32"))
assert index.search(numpy.eye(8, dtype="float32"), 1)[1].ravel().tolist() == list(range(8))
""",
    "trainer-cpu": """
absent("kopf", "triton", "faiss")
import ray, torch, transformers, rljob_trainer.driver
assert not torch.cuda.is_available()
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
@ray.remote(num_cpus=1)
def gradient():
    x = torch.arange(4.0, requires_grad=True)
    (x**2).sum().backward()
    return x.grad.tolist()
assert ray.get(gradient.remote(), timeout=120) == [0.0, 2.0, 4.0, 6.0]
ray.shutdown()
""",
}
LIMITS_MB = {"operator": 350, "retriever": 450, "trainer-cpu": 2000}


def pod(name: str, image: str, program: str) -> str:
    """A pod as restricted as those that the operator makes."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", program],
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "activeDeadlineSeconds": 300,
        # No user is given: the image's own has to be a number that the kubelet accepts as not root.
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_image_runs_in_a_restricted_pod(name: str, kubectl: Kubectl, installed_operator: str) -> None:
    kubectl.apply(pod(name, f"{REGISTRY}/{name}:{TAG}", EVERYWHERE + PROGRAMS[name]))
    ended = ("Succeeded", "Failed")
    phase = wait_for(
        f"the end of pod {name}",
        lambda: found if (found := kubectl.get("pod", name)["status"].get("phase")) in ended else None,
        seconds=300,
    )
    assert phase == "Succeeded", kubectl("logs", name)


@pytest.mark.parametrize("name", LIMITS_MB)
def test_an_image_is_no_larger_than_it_has_to_be(name: str) -> None:
    if REGISTRY != "rljob":
        pytest.skip("the images come from a registry")
    reference = f"rljob/{name}:{TAG}"
    builder = choose()
    assert builder.labels(reference) is not None, f"{reference} has not been built: python -m images.build"
    assert builder.size(reference) / 1e6 <= LIMITS_MB[name]


def test_helm_test_passes(kubectl: Kubectl, system: Kubectl, installed_operator: str) -> None:
    from e2e.tests.conftest import helm

    said = helm(system.kubeconfig, "test", installed_operator, "--namespace", system.namespace)
    assert "Phase:          Succeeded" in said


def test_the_operators_account_may_not_do_more_than_it_needs(system: Kubectl, installed_operator: str) -> None:
    account = f"system:serviceaccount:{system.namespace}:{installed_operator}-operator"

    def may(*words: str) -> bool:
        return bool(
            json.loads(system("create", "-o", "json", "-f", "-", stdin=review(account, *words)))["status"]["allowed"]
        )

    assert may("create", "ray.io", "rayjobs")
    assert may("create", "rbac.authorization.k8s.io", "roles")
    for words in (
        ("get", "", "secrets"),
        ("create", "", "pods"),
        ("escalate", "rbac.authorization.k8s.io", "roles"),
        ("bind", "rbac.authorization.k8s.io", "roles"),
        ("create", "rbac.authorization.k8s.io", "clusterroles"),
        ("patch", "apiextensions.k8s.io", "customresourcedefinitions"),
        ("delete", "", "persistentvolumeclaims"),
    ):
        assert not may(*words), words


def review(account: str, verb: str, group: str, resource: str) -> str:
    """A SubjectAccessReview in every namespace."""
    attributes = {"verb": verb, "group": group, "resource": resource}
    spec = {"user": account, "resourceAttributes": attributes}
    return json.dumps({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
