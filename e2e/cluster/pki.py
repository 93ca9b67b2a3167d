"""Certificates and kubeconfigs: one authority, one client certificate per component, as on a real cluster."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from .paths import Paths
from .run import Word, run, write
from .settings import (
    API_SERVICE_ADDRESS,
    CLUSTER_ADDRESS,
    CLUSTER_DOMAIN,
    NAME,
    NODE_ADDRESS,
    NODE_NAME,
    NODE_SERVER,
)

_DAYS = "365"
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]

# file name -> (subject, extended key usage, alternative names)
CERTIFICATES: dict[str, tuple[str, str, list[str]]] = {
    "apiserver": (
        "/CN=kube-apiserver",
        "serverAuth",
        [
            "DNS:localhost",
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            f"DNS:kubernetes.default.svc.{CLUSTER_DOMAIN}",
            "IP:127.0.0.1",
            f"IP:{NODE_ADDRESS}",
            f"IP:{CLUSTER_ADDRESS}",
            f"IP:{API_SERVICE_ADDRESS}",
        ],
    ),
    "apiserver-kubelet-client": ("/CN=kube-apiserver-kubelet-client", "clientAuth", []),
    "admin": ("/O=system:masters/CN=admin", "clientAuth", []),
    "controller-manager": ("/CN=system:kube-controller-manager", "clientAuth", []),
    "scheduler": ("/CN=system:kube-scheduler", "clientAuth", []),
    "kube-proxy": ("/CN=system:kube-proxy", "clientAuth", []),
    "coredns": ("/CN=system:coredns", "clientAuth", []),
    "kubelet": (f"/O=system:nodes/CN=system:node:{NODE_NAME}", "clientAuth", []),
    "kubelet-server": (f"/CN={NODE_NAME}", "serverAuth", [f"DNS:{NODE_NAME}", f"IP:{NODE_ADDRESS}"]),
}
FRONT_PROXY = "front-proxy-client"


def _authority(folder: Path, name: str) -> None:
    constraints = [
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    ]
    files: list[Word] = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
    run(
        [
            "openssl",
            "req",
            "-x509",
            *_KEY,
            *files,
            "-subj",
            f"/CN={NAME}-{name}",
            "-days",
            _DAYS,
            *constraints,
        ]
    )


def _leaf(folder: Path, authority: str, name: str, subject: str, usage: str, names: list[str]) -> None:
    signer: list[Word] = ["-CA", folder / f"{authority}.crt", "-CAkey", folder / f"{authority}.key"]
    files: list[Word] = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
    extensions = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"extendedKeyUsage={usage}"]
    if names:
        extensions += ["-addext", f"subjectAltName={','.join(names)}"]
    run(["openssl", "req", "-x509", *_KEY, *files, *signer, "-subj", subject, "-days", _DAYS, *extensions])


def create(paths: Paths) -> None:
    """Make what is missing. Keys are readable by root alone."""
    folder = paths.pki
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    done = folder / ".complete"
    if done.exists():
        return
    _authority(folder, "ca")
    _authority(folder, "front-proxy-ca")
    for name, (subject, usage, names) in CERTIFICATES.items():
        _leaf(folder, "ca", name, subject, usage, names)
    _leaf(folder, "front-proxy-ca", FRONT_PROXY, f"/CN={FRONT_PROXY}", "clientAuth", [])
    run(
        [
            "openssl",
            "genpkey",
            "-quiet",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            folder / "sa.key",
        ]
    )
    run(["openssl", "pkey", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub"])
    for key in folder.glob("*.key"):
        key.chmod(0o600)
    done.touch()


def render_kubeconfig(server: str, user: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig with everything inside it. JSON, which is YAML too."""

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    cluster = {"server": server, "certificate-authority-data": text(authority)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [
            {
                "name": user,
                "user": {"client-certificate-data": text(certificate), "client-key-data": text(key)},
            }
        ],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": user}}],
        "current-context": NAME,
    }
    return json.dumps(config, indent=1)


def kubeconfig(paths: Paths, user: str, server: str = NODE_SERVER, target: Path | None = None) -> Path:
    """Write the kubeconfig of a component or of the admin, mode 0600."""
    folder = paths.pki
    text = render_kubeconfig(
        server,
        user,
        (folder / "ca.crt").read_bytes(),
        (folder / f"{user}.crt").read_bytes(),
        (folder / f"{user}.key").read_bytes(),
    )
    return write(target or paths.config / f"{user}.kubeconfig", text, mode=0o600)
