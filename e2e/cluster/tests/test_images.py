from __future__ import annotations

from pathlib import Path

from e2e.cluster import images
from e2e.cluster.paths import Paths


def test_a_base_is_told_apart_by_suite_and_packages() -> None:
    assert images.base_key("trixie", ["a", "b"]) == images.base_key("trixie", ["b", "a"])
    assert images.base_key("trixie", ["a"]) != images.base_key("trixie", ["a", "b"])
    assert images.base_key("trixie", ["a"]) != images.base_key("bookworm", ["a"])


def test_what_a_build_is_lent_is_read_only(paths: Paths, tmp_path: Path) -> None:
    mounts = images.build_mounts(paths, {"HOME": str(tmp_path)})
    assert mounts[0::2] == ["--volume"] * (len(mounts) // 2)
    assert all(mount.endswith(":ro") for mount in mounts[1::2])
    assert {mount.split(":")[1] for mount in mounts[1::2]} >= {"/etc/pip.conf", "/etc/uv/uv.toml"}


def test_a_bundle_of_one_s_own_takes_the_place_of_the_system_s(paths: Paths, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    mounts = images.build_mounts(paths, {"HOME": str(tmp_path), "SSL_CERT_FILE": str(bundle)})
    assert f"{bundle}:/etc/ssl/certs/ca-certificates.crt:ro" in mounts
    assert not any(mount.startswith("/etc/ssl/certs:") for mount in mounts)


def test_the_user_s_own_configuration_is_lent(paths: Paths, tmp_path: Path) -> None:
    config = tmp_path / ".config" / "uv" / "uv.toml"
    config.parent.mkdir(parents=True)
    config.touch()
    assert f"{config}:/etc/uv/uv.toml:ro" in images.build_mounts(paths, {"HOME": str(tmp_path)})
