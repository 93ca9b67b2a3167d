from __future__ import annotations

import shutil
import subprocess

import pytest

from e2e.cluster import pki
from e2e.cluster.paths import Paths

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def test_certificates_are_signed_and_keys_are_private(paths: Paths) -> None:
    pki.create(paths)
    folder = paths.pki
    assert folder.stat().st_mode & 0o777 == 0o700
    for key in folder.glob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600, key.name
    leaves = dict.fromkeys(pki.CERTIFICATES, "ca") | {pki.FRONT_PROXY: "front-proxy-ca"}
    for name, authority in leaves.items():
        command = ["openssl", "verify", "-CAfile", f"{folder}/{authority}.crt", f"{folder}/{name}.crt"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, name
    before = (folder / "ca.crt").read_bytes()
    pki.create(paths)
    assert (folder / "ca.crt").read_bytes() == before
    config = pki.kubeconfig(paths, "admin")
    assert config.stat().st_mode & 0o777 == 0o600
