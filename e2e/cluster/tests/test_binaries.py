from __future__ import annotations

from dataclasses import replace

import pytest

from e2e.cluster import binaries
from e2e.cluster.binaries import FULL, KUBERNETES, OPTIONAL, Module, render_go_mod
from e2e.cluster.paths import Paths
from e2e.cluster.run import ClusterError

MODULE = Module("example.org/thing", "v1.2.3", {"tool": "cmd/tool", "other": "cmd/other"})


def test_a_key_changes_with_whatever_decides_the_binary() -> None:
    keys = {
        MODULE.key("tool"),
        MODULE.key("other"),
        replace(MODULE, version="v1.2.4").key("tool"),
        replace(MODULE, path="example.org/fork").key("tool"),
        replace(MODULE, variables={"main.version": "x"}).key("tool"),
    }
    assert len(keys) == 5
    assert MODULE.key("tool") == replace(MODULE).key("tool")


def test_a_cached_name_tells_version_and_key(paths: Paths) -> None:
    assert MODULE.cached(paths, "tool") == paths.bin / f"tool-v1.2.3-{MODULE.key('tool')}"


def test_every_program_belongs_to_its_module() -> None:
    for name, module in {**FULL, **OPTIONAL}.items():
        assert name in module.programs


def test_staging_modules_are_replaced_by_published_ones() -> None:
    upstream = """module k8s.io/kubernetes

go 1.24.0

require k8s.io/api v0.0.0

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/client-go => ./staging/src/k8s.io/client-go // a remark
)

replace example.org/a v1.0.0 => example.org/b v1.0.1
"""
    module = replace(KUBERNETES, version="v1.34.4")
    assert render_go_mod(module, upstream).splitlines() == [
        "module rljob.build",
        "",
        "go 1.24.0",
        "",
        "require k8s.io/kubernetes v1.34.4",
        "replace k8s.io/api => k8s.io/api v0.34.4",
        "replace k8s.io/client-go => k8s.io/client-go v0.34.4",
        "replace example.org/a v1.0.0 => example.org/b v1.0.1",
    ]


def test_a_replacement_by_an_unpublished_folder_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"replaces example.org/a by a folder"):
        render_go_mod(MODULE, "module m\n\ngo 1.24\n\nreplace example.org/a => ./a\n")


def test_nothing_is_built_when_the_cache_has_it(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    paths.bin.mkdir(parents=True)
    with pytest.raises(ClusterError, match="go: not found"):
        binaries.ensure(paths, {"tool": MODULE})
    MODULE.cached(paths, "tool").touch()
    binaries.ensure(paths, {"tool": MODULE})
