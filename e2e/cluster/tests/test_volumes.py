from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster import volumes
from e2e.cluster.kubectl import Kubectl, Manifest
from e2e.cluster.paths import Paths
from e2e.cluster.run import Word
from e2e.cluster.settings import VOLUMES


@dataclass(frozen=True)
class FakeKubectl(Kubectl):
    """Remembers what it was told."""

    phases: dict[str, str] = field(default_factory=dict[str, str])
    deleted: list[str] = field(default_factory=list[str])
    applied: list[str] = field(default_factory=list[str])

    def get(self, *arguments: str) -> Manifest:
        return {"items": [{"metadata": {"name": n}, "status": {"phase": p}} for n, p in self.phases.items()]}

    def apply(self, manifests: Iterable[Manifest]) -> None:
        self.applied.extend(item["metadata"]["name"] for item in manifests)

    def __call__(self, *arguments: Word, stdin: str | None = None, timeout: float = 60) -> str:
        self.deleted.extend(str(word) for word in arguments if str(word).startswith("standard-"))
        return ""


def test_an_empty_cluster_gets_the_whole_pool(paths: Paths) -> None:
    kubectl = FakeKubectl(Path("kubectl"), Path("config"))
    volumes.refill(paths, kubectl)
    assert kubectl.applied == ["standard", *(f"standard-{number}" for number in range(VOLUMES))]
    assert (paths.volumes / "standard-3").stat().st_mode & 0o777 == 0o777


def test_only_volumes_whose_claim_is_gone_are_renewed(paths: Paths) -> None:
    phases = {f"standard-{number}": "Bound" for number in range(VOLUMES)}
    phases.update({"standard-2": "Released", "standard-5": "Available", "another": "Released"})
    for name in ("standard-1", "standard-2"):
        (paths.volumes / name).mkdir(parents=True)
        (paths.volumes / name / "data").touch()
    kubectl = FakeKubectl(Path("kubectl"), Path("config"), phases)
    volumes.refill(paths, kubectl)
    assert kubectl.deleted == ["standard-2"]
    assert kubectl.applied == ["standard", "standard-2"]
    assert not (paths.volumes / "standard-2" / "data").exists()
    assert (paths.volumes / "standard-1" / "data").exists()
