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
    "kube-router": ("/CN=system:kube-router", "clientAuth", []),
    "kubelet": (f"/O=system:nodes/CN=system:node:{NODE_NAME}", "clientAuth", []),
    "kubelet-server": (f"/CN={NODE_NAME}", "serverAuth", [f"DNS:{NODE_NAME}", f"IP:{NODE_ADDRESS}"]),
}
FRONT_PROXY = "front-proxy-client"


def _certify(folder: Path, name: str, subject: str, extensions: list[str], authority: str | None = None) -> None:
    """Make a key and its certificate, signed by an authority or by itself."""
    words: list[Word] = ["openssl", "req", "-x509", *_KEY, "-subj", subject, "-days", _DAYS]
    words += ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
    if authority:
        words += ["-CA", folder / f"{authority}.crt", "-CAkey", folder / f"{authority}.key"]
    for extension in extensions:
        words += ["-addext", extension]
    run(words)


def _authority(folder: Path, name: str) -> None:
    extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
    _certify(folder, name, f"/CN={NAME}-{name}", extensions)


def _leaf(folder: Path, authority: str, name: str, subject: str, usage: str, names: list[str]) -> None:
    extensions = ["basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={usage}"]
    if names:
        extensions.append(f"subjectAltName={','.join(names)}")
    _certify(folder, name, subject, extensions, authority)


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
    service_accounts: list[Word] = ["-algorithm", "EC", *_KEY[2:4], "-out", folder / "sa.key"]
    run(["openssl", "genpkey", "-quiet", *service_accounts])
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


def client(paths: Paths, user: str, group: str, server: str = NODE_SERVER) -> Path:
    """The kubeconfig of one more user, of a group."""
    if not (paths.pki / f"{user}.crt").exists():
        _leaf(paths.pki, "ca", user, f"/O={group}/CN={user}", "clientAuth", [])
        (paths.pki / f"{user}.key").chmod(0o600)
    return kubeconfig(paths, user, server)
