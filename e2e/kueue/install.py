"""Kueue as a process beside a control plane, with its own webhooks: for RayJobs alone.

Its manager makes its certificates itself and looks for them in a Secret, which the kubelet would mount. Here nobody
does: Secret and files are made beforehand, for a name that Kueue's rotator expects and for the address by which the
apiserver reaches it.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import binaries, pki
from e2e.cluster.cluster import Cluster
from e2e.cluster.run import Word, run, write
from e2e.cluster.settings import NODE_SERVER

NAMESPACE = "kueue-system"
SECRET = "kueue-webhook-server-cert"
SERVICE = "kueue-webhook-service"
AUTHORITY = "kueue-ca"
PORT = 19443
URL = f"https://127.0.0.1:{PORT}"
CONVERTED = ("localqueues", "clusterqueues", "workloads", "cohorts", "multikueueclusters")
FRAMEWORKS = ("rayjob",)
CORE = ("clusterqueue", "cohort", "resourceflavor", "workload")


def install(cluster: Cluster) -> None:
    """Definitions, webhooks, certificates and the manager; returns once it is ready."""
    paths, kubectl, daemons = cluster.paths, cluster.kubectl(), cluster.daemons
    certificates = _certificates(paths.state / "kueue")
    kubectl.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, _secret(certificates)])
    manifests = binaries.kueue_manifests(paths)
    _server_side(cluster, [_definition(file) for file in sorted((manifests / "crds").glob("*.yaml"))])
    for plural in ("workloads", "clusterqueues"):
        path = f"/apis/kueue.x-k8s.io/v1beta2/{plural}"
        daemons.wait_ready(path, lambda path=path: kubectl.answers(path))  # type: ignore[misc]
    _server_side(cluster, list(_webhooks(manifests / "webhook/manifests.yaml")))
    config = write(paths.state / "kueue/config.yaml", json.dumps(_config(certificates)))
    kubeconfig = pki.client(paths, "kueue", "system:masters", NODE_SERVER)
    command: list[Word] = [binaries.program(paths, "kueue"), f"--config={config}", "--zap-log-level=2"]
    daemons.start("kueue", [str(word) for word in command], {"KUBECONFIG": str(kubeconfig)})
    # Ready is a manager whose webhooks answer: one of them judges this.
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
    daemons.wait_ready("kueue", lambda: _created(cluster, flavor))


def _created(cluster: Cluster, body: dict[str, Any]) -> bool:
    cluster.kubectl().apply([body])
    return True


def _server_side(cluster: Cluster, manifests: list[dict[str, Any]]) -> None:
    """The definitions are too large for the annotation of a client-side apply."""
    text = "\n---\n".join(json.dumps(body) for body in manifests)
    cluster.kubectl()("apply", "--server-side", "-f", "-", stdin=text, timeout=120)


def _certificates(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    new: list[Word] = ["openssl", "req", "-x509", "-new", "-days", "365"]
    ca = [
        "basicConstraints=critical,CA:TRUE",
        "keyUsage=critical,keyCertSign,cRLSign",
        f"subjectAltName=DNS:{AUTHORITY}",
    ]
    names = f"subjectAltName=DNS:{SERVICE}.{NAMESPACE}.svc,IP:127.0.0.1"
    server = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=serverAuth", names]
    # The rotator reads PKCS#1 alone.
    run(["openssl", "genrsa", "-traditional", "-out", folder / "ca.key", "2048"])
    subject = f"/O=kueue/CN={AUTHORITY}"
    run([*new, "-key", folder / "ca.key", "-subj", subject, "-out", folder / "ca.crt", *_added(ca)])
    key: list[Word] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / "tls.key"]
    signed: list[Word] = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-out", folder / "tls.crt"]
    run([*new, *key, "-subj", f"/CN={SERVICE}.{NAMESPACE}.svc", *signed, *_added(server)])
    return folder


def _added(extensions: list[str]) -> list[Word]:
    return [word for extension in extensions for word in ("-addext", extension)]


def _secret(folder: Path) -> dict[str, Any]:
    names = ("ca.crt", "ca.key", "tls.crt", "tls.key")
    data = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in names}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}, "data": data}


def _definition(file: Path) -> dict[str, Any]:
    """A definition with the conversion that Kueue's own kustomization gives it; the rotator adds the CA."""
    body: dict[str, Any] = yaml.load(file.read_text(), yaml.CSafeLoader)
    if body["spec"]["names"]["plural"] in CONVERTED:
        client = {"url": f"{URL}/convert"}
        webhook = {"clientConfig": client, "conversionReviewVersions": ["v1"]}
        body["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    return body


def _webhooks(file: Path) -> Iterator[dict[str, Any]]:
    """Kueue's webhooks for its own kinds and for the integrations that are on, reached by URL instead of a Service."""
    for body in yaml.load_all(file.read_text(), yaml.CSafeLoader):
        kept = [hook for hook in body["webhooks"] if hook["name"].partition(".")[0][1:] in (*FRAMEWORKS, *CORE)]
        for hook in kept:
            hook["clientConfig"] = {"url": URL + hook["clientConfig"]["service"]["path"]}
        yield body | {"metadata": {"name": f"kueue-{body['metadata']['name']}"}, "webhooks": kept}


def _config(certificates: Path) -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": "127.0.0.1:19081"},
        "metrics": {"bindAddress": "127.0.0.1:19080"},
        "webhook": {"host": "127.0.0.1", "port": PORT, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": True, "webhookServiceName": SERVICE, "webhookSecretName": SECRET},
        "integrations": {"frameworks": [f"ray.io/{name}" for name in FRAMEWORKS]},
        # An aggregated apiserver and a second cluster: neither is anything of ours.
        "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False},
    }
