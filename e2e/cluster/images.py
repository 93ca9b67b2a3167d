"""Building images without an engine or a registry: a debootstrap base, buildah for Containerfiles, load to the node.

base = debootstrap_base()                                  # "localhost/rljob-base:trixie"
buildah_build(Path("images/operator.Containerfile"), Path("."), "localhost/rljob-operator:dev",
              {"BASE_IMAGE": base})
load("localhost/rljob-operator:dev")
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import apt, archive, node_images
from .cluster import Cluster
from .netns import unmount
from .paths import Paths
from .run import ClusterError, Word, lock, run, say, write
from .settings import IMAGE_PACKAGES

# Without pip, or venv, which brings it: what runs in a pod cannot install anything. Build stages add what they need.
BASE_PACKAGES = ("ca-certificates", "python3", "tzdata")

# Nothing is signed here, and nothing is pulled.
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}

# Raised when the making of a base changes, so that cached ones are made anew.
_BASE_REVISION = 2

# What a base has no use for. Lists and caches change from day to day; documentation is a third of a minbase.
_DROPPED = (
    "var/lib/apt/lists/*",
    "var/cache/apt/*",
    "var/cache/ldconfig/*",
    "var/log/*",
    "usr/share/doc/*",
    "usr/share/man/*",
    "usr/share/info/*",
    "usr/share/locale/*",
    "etc/machine-id",
    "etc/hostname",
    "etc/resolv.conf",
)


def buildah(*arguments: Word, paths: Paths | None = None, timeout: float = 60, check: bool = True) -> str:
    """Run buildah on the cache's own storage; what it printed."""
    paths = paths or Paths.from_env()
    storage = paths.buildah
    policy = storage / "policy.json"
    apt.ensure(IMAGE_PACKAGES)
    if not policy.exists():
        write(policy, json.dumps(_POLICY))
    # The run root holds lock files and mounts, which are void after a reboot.
    words: list[Word] = ["buildah", "--root", storage / "root", "--runroot", Path("/run/rljob-buildah")]
    command, *rest = arguments
    words += ["--storage-driver", "overlay", command]
    if command in ("build", "commit", "from", "pull", "push"):
        words += ["--signature-policy", policy]
    # TMPDIR also holds what `RUN --mount=type=cache` keeps.
    (storage / "tmp").mkdir(parents=True, exist_ok=True)
    env = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay", "TMPDIR": str(storage / "tmp")}
    return run([*words, *rest], env=env, timeout=timeout, check=check).stdout


def image_id(tag: str, paths: Paths | None = None) -> str | None:
    """The id (sha256:…) of an image in buildah's storage."""
    out = buildah("images", "--no-trunc", "--quiet", tag, paths=paths, check=False).split()
    return out[0] if out else None


def build_mounts(paths: Paths, env: Mapping[str, str] | None = None) -> list[str]:
    """`--volume` flags that let pip, uv and apt reach their registries as this machine does, at build time alone."""
    env = os.environ if env is None else env
    folder = paths.images / "build-etc"
    bundle = next((env[name] for name in ("PIP_CERT", "SSL_CERT_FILE") if env.get(name)), None)
    bundle_inside = "/etc/ssl/certs/ca-certificates.crt"
    pip = _first_file([Path("/etc/pip.conf"), Path(env.get("HOME", "/root"), ".config/pip/pip.conf")])
    uv = _first_file([Path(env.get("HOME", "/root"), ".config/uv/uv.toml"), Path("/etc/uv/uv.toml")])
    if pip is None:
        pip = write(folder / "pip.conf", f"[global]\ncert = {bundle_inside}\n")
    if uv is None:
        uv = write(folder / "uv.toml", "native-tls = true\n")
    mounts = {"/etc/pip.conf": pip, "/etc/uv/uv.toml": uv}
    # The folder holds links into the other one.
    for place in ("/etc/ssl/certs", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"):
        if Path(place).is_dir():
            mounts[place] = Path(place)
    if bundle and Path(bundle).is_file() and Path(bundle) != Path(bundle_inside):
        mounts[bundle_inside] = Path(bundle)
        mounts.pop("/etc/ssl/certs", None)
    return [word for target, source in mounts.items() for word in ("--volume", f"{source}:{target}:ro")]


def _first_file(candidates: Sequence[Path]) -> Path | None:
    return next((file for file in candidates if file.is_file()), None)


def buildah_build(
    containerfile: Path,
    context: Path,
    tag: str,
    build_args: Mapping[str, str] | None = None,
    *,
    target: str | None = None,
    timeout: float = 3600,
) -> str:
    """Build a Containerfile; the image id. Layers are cached, so that an unchanged build takes seconds."""
    paths = Paths.from_env()
    words: list[Word] = ["build", "--file", containerfile, "--tag", tag, "--layers", "--format", "oci"]
    words += ["--network", "host", "--pull=false"]
    words += build_mounts(paths)
    for name, value in sorted((build_args or {}).items()):
        words += ["--build-arg", f"{name}={value}"]
    if target:
        words += ["--target", target]
    say(f"building image {tag}")
    buildah(*words, context, paths=paths, timeout=timeout)
    identity = image_id(tag, paths)
    if identity is None:
        raise ClusterError(f"{tag}: built, yet not in buildah's storage")
    say(f"built image {tag}")
    return identity


def _debian_mirror() -> str:
    """Address of the Debian archive that this machine's apt uses."""
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]).stdout
    for address in listed.split():
        if address.rstrip("/").endswith("/debian"):
            return address.rstrip("/")
    raise ClusterError("apt on this machine uses no Debian archive: no base image can be made")


def base_key(suite: str, packages: Sequence[str]) -> str:
    """Names what decides a base's content (but for the archive's state on the day)."""
    text = json.dumps([_BASE_REVISION, suite, sorted(packages), _DROPPED])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def base_archive(paths: Paths, suite: str, packages: Sequence[str]) -> Path:
    """The cached docker-archive of a base, made by debootstrap (half a minute) when missing."""
    file = paths.images / f"base-{suite}-{base_key(suite, packages)}.tar"
    with lock(paths.images / ".base.lock"):
        if not file.exists():
            for stale in paths.images.glob(".base-*"):  # of a run that was killed; who holds the lock is alone
                unmount(stale)
                shutil.rmtree(stale)
            say(f"making a base of Debian {suite}")
            _debootstrap(file, suite, packages)
    return file


def base_tag(suite: str) -> str:
    """The base's name."""
    return f"localhost/rljob-base:{suite}"


def _debootstrap(file: Path, suite: str, packages: Sequence[str]) -> None:
    apt.ensure(IMAGE_PACKAGES)
    mirror = _debian_mirror()
    with tempfile.TemporaryDirectory(prefix=".base-", dir=file.parent) as folder:
        root = Path(folder) / "root"
        root.mkdir(mode=0o755)
        include = f"--include={','.join(sorted(packages))}"
        try:
            run(["debootstrap", "--variant=minbase", include, suite, root, mirror], timeout=900)
        finally:
            unmount(root)  # it leaves /proc mounted when it fails
        for pattern in _DROPPED:
            for found in root.glob(pattern):
                if found.is_dir() and not found.is_symlink():
                    shutil.rmtree(found)
                else:
                    found.unlink()
        layer = Path(folder) / "layer.tar"
        # Times stay as they are: Python's compiled files hold those of their sources, and are void without them.
        order = ["--sort=name", "--numeric-owner", "--xattrs"]
        run(["tar", *order, "--exclude=./dev/*", "-C", root, "-cf", layer, "."], timeout=300)
        config = {"Cmd": ["/bin/sh"]}
        env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        archive.write_archive(file, base_tag(suite), layer, config, env)


def debootstrap_base(suite: str = "trixie", packages: Sequence[str] = BASE_PACKAGES) -> str:
    """Make a Debian base image with Python; its name in buildah's storage."""
    paths = Paths.from_env()
    tag = base_tag(suite)
    file = base_archive(paths, suite, packages)
    if image_id(tag, paths) != archive.contents(file)[tag]:
        buildah("pull", "--quiet", f"docker-archive:{file}", paths=paths, timeout=300)
    return tag


def load(tag: str) -> None:
    """Load an image from buildah's storage into the node, unless it is there already."""
    paths = Paths.from_env()
    containerd = Cluster(paths).containerd
    identity = image_id(tag, paths)
    if identity is None:
        raise ClusterError(f"{tag}: not in buildah's storage")
    if node_images.Loaded(paths).current(tag, identity, containerd.images()):
        say(f"{tag}: already on the node")
        return
    # Beside the images, not in /tmp, which may be memory: an image with torch in it takes gigabytes.
    with tempfile.TemporaryDirectory(prefix=".load-", dir=paths.images) as folder:
        file = Path(folder) / "image.tar"
        buildah("push", "--disable-compression", tag, f"docker-archive:{file}:{tag}", paths=paths, timeout=900)
        node_images.load_archive(paths, containerd, file)
    on_node = containerd.images()
    node_images.Loaded(paths).record({tag: identity}, on_node)
