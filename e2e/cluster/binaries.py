"""Go programs built from their modules into a cache, so that only the first run on a machine pays for them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .paths import Paths
from .run import ClusterError, lock, run, run_counting, say, write

KUBERNETES_VERSION = "v1.34.4"
KUBERAY_VERSION = "v1.6.1"
HELM_VERSION = "v3.22.0"
COREDNS_VERSION = "v1.12.4"
KWOK_VERSION = "v0.7.0"
KUBE_ROUTER_VERSION = "v2.1.0"
KUEUE_VERSION = "v0.15.0"

_ENV = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}


@dataclass(frozen=True)
class Module:
    """A Go module at a version, and the programs wanted of it: name -> package path below the module."""

    path: str
    version: str
    programs: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def flags(self) -> list[str]:
        """Flags of `go build`: static, small, the same on every machine, with the version linked in."""
        stamps = [f"-X {name}={value}" for name, value in sorted(self.variables.items())]
        return ["-trimpath", "-buildvcs=false", "-ldflags", " ".join(["-s", "-w", *stamps])]

    def key(self, program: str) -> str:
        """Names what decides the binary's content, beside its version."""
        text = json.dumps([self.path, self.version, self.programs[program], self.flags, sorted(_ENV.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def cached(self, paths: Paths, program: str) -> Path:
        """Where the program lies once it is built."""
        return paths.bin / f"{program}-{self.version}-{self.key(program)}"


def _version_variables(version: str) -> dict[str, str]:
    major, minor, _ = version.removeprefix("v").split(".")
    package = "k8s.io/component-base/version"
    return {f"{package}.gitVersion": version, f"{package}.gitMajor": major, f"{package}.gitMinor": minor}


KUBERNETES = Module(
    "k8s.io/kubernetes",
    KUBERNETES_VERSION,
    {
        name: f"cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    },
    _version_variables(KUBERNETES_VERSION),
)
KUBERAY = Module("github.com/ray-project/kuberay/ray-operator", KUBERAY_VERSION, {"kuberay-operator": ""})
HELM = Module(
    "helm.sh/helm/v3",
    HELM_VERSION,
    {"helm": "cmd/helm"},
    {
        "helm.sh/helm/v3/internal/version.version": HELM_VERSION,
        # Without these, `helm template` believes in a Kubernetes 1.20.
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor": "1",
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor": KUBERNETES_VERSION.split(".")[1],
    },
)
COREDNS = Module("github.com/coredns/coredns", COREDNS_VERSION, {"coredns": ""})
KUBE_ROUTER = Module(
    "github.com/cloudnativelabs/kube-router/v2", KUBE_ROUTER_VERSION, {"kube-router": "cmd/kube-router"}
)
KWOK = Module("sigs.k8s.io/kwok", KWOK_VERSION, {"kwok": "cmd/kwok"})

KUEUE = Module(
    "sigs.k8s.io/kueue",
    KUEUE_VERSION,
    {"kueue": "cmd/kueue"},
    {"sigs.k8s.io/kueue/pkg/version.GitVersion": KUEUE_VERSION},
)

CONTROL_PLANE: dict[str, Module] = dict.fromkeys(("kube-apiserver", "kube-controller-manager", "kubectl"), KUBERNETES)
FULL: dict[str, Module] = {
    **dict.fromkeys(KUBERNETES.programs, KUBERNETES),
    "kuberay-operator": KUBERAY,
    "helm": HELM,
    "coredns": COREDNS,
    "kube-router": KUBE_ROUTER,
}
OPTIONAL: dict[str, Module] = {"kwok": KWOK, "kueue": KUEUE}


def program(paths: Paths, name: str) -> Path:
    """The cached binary of a program by its plain name."""
    return {**FULL, **OPTIONAL}[name].cached(paths, name)


def render_go_mod(module: Module, upstream: str) -> str:
    """A go.mod that builds a module's programs from outside it.

    The replacements of a dependency are not honoured by Go, so they are repeated. Kubernetes replaces its staging
    modules by folders of its own repository, which the module archive does not hold: the published ones stand in,
    whose versions are the same with a 0 for the 1.
    """
    go = re.search(r"^go (\S+)$", upstream, re.MULTILINE)
    if go is None:
        raise ClusterError(f"{module.path}: no go line in its go.mod")
    lines = ["module rljob.build", "", f"go {go.group(1)}", "", f"require {module.path} {module.version}"]
    staged = re.sub(r"^v1\.", "v0.", module.version)
    for old, new in re.findall(
        r"^(?:replace)?\s*(\S+(?: v\S+)?) => (\S+(?: v\S+)?)\s*(?://.*)?$", upstream, re.MULTILINE
    ):
        if new.startswith("./staging/"):
            lines.append(f"replace {old} => {old} {staged}")
        elif new.startswith("."):
            raise ClusterError(f"{module.path}: replaces {old} by a folder ({new}), which its archive does not hold")
        else:
            lines.append(f"replace {old} => {new}")
    return "\n".join(lines) + "\n"


def download(module: Module) -> tuple[Path, Path]:
    """The module's folder in Go's module cache, and its go.mod."""
    with tempfile.TemporaryDirectory(prefix="rljob-go-") as folder:
        out = run(
            ["go", "mod", "download", "-json", f"{module.path}@{module.version}"],
            env={"GOFLAGS": ""},
            cwd=Path(folder),
            timeout=900,
        )
    found: dict[str, str] = json.loads(out.stdout)
    return Path(found["Dir"]), Path(found["GoMod"])


def _build(paths: Paths, module: Module, names: list[str]) -> None:
    _, go_mod = download(module)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=paths.bin) as folder:
        work = Path(folder)
        write(work / "go.mod", render_go_mod(module, go_mod.read_text()))
        out = work / "out"
        out.mkdir()
        packages = [f"{module.path}/{module.programs[name]}".rstrip("/") for name in names]
        # One call for all programs of a module: what one links while another still compiles.
        run_counting(
            ["go", "build", "-v", *module.flags, "-o", f"{out}/", *packages],
            lambda lines: f"building {', '.join(names)}: {lines} packages so far",
            env=_ENV,
            cwd=work,
            timeout=3600,
        )
        for name, package in zip(names, packages, strict=True):
            built = out / package.rsplit("/", 1)[-1]
            built.chmod(0o755)
            built.rename(module.cached(paths, name))


def ensure(paths: Paths, wanted: dict[str, Module]) -> None:
    """Build those of the programs that the cache lacks."""
    paths.bin.mkdir(parents=True, exist_ok=True)
    if all(module.cached(paths, name).exists() for name, module in wanted.items()):
        return
    if shutil.which("go") is None:
        raise ClusterError("go: not found; the cluster's programs are built from source, install Go 1.25 or newer")
    with lock(paths.bin / ".lock"):
        for module in _unique(wanted.values()):
            names = [n for n, m in wanted.items() if m is module and not m.cached(paths, n).exists()]
            if names:
                say(f"building {', '.join(names)} ({module.version}): minutes, once for this cache")
                _build(paths, module, names)
                say(f"built {', '.join(names)}")


def _unique(modules: Iterable[Module]) -> list[Module]:
    """In order, once each (a Module holds dicts, so it is told apart by identity)."""
    return list({id(module): module for module in modules}.values())


def kuberay_manifests(paths: Paths) -> Path:
    """Folder with KubeRay's own crds/*.yaml and rbac/*.yaml, copied out of its module once."""
    return _manifests(paths, "kuberay", KUBERAY, {"crds": "config/crd/bases", "rbac": "config/rbac"})


def kueue_manifests(paths: Paths) -> Path:
    """Folder with Kueue's own crds/*.yaml and webhook/*.yaml, copied out of its module once."""
    origins = {"crds": "config/components/crd/bases", "webhook": "config/components/webhook"}
    return _manifests(paths, "kueue", KUEUE, origins)


def _manifests(paths: Paths, name: str, module: Module, origins: dict[str, str]) -> Path:
    """A folder with the YAML files of folders of a module, each under another name."""
    target = paths.manifests / f"{name}-{module.version}"
    if not target.exists():
        source, _ = download(module)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            copy = Path(folder) / "copy"
            for part, origin in origins.items():
                (copy / part).mkdir(parents=True)
                for file in sorted((source / origin).glob("*.yaml")):
                    (copy / part / file.name).write_bytes(file.read_bytes())
            copy.rename(target)
    return target
