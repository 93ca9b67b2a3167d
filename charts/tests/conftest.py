"""Helm, and what it renders of the chart."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import binaries
from e2e.cluster.paths import Paths

CHARTS = Path(__file__).resolve().parents[1]
CHART = CHARTS / "rljob"
Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Run helm: that on the PATH, else the one that `make e2e-up` has built."""
    built = binaries.program(Paths.from_env(), "helm")
    program = shutil.which("helm") or (str(built) if built.exists() else None)
    if program is None:
        pytest.skip("no helm on the PATH nor in RLJob's cache (make e2e-up builds it)")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The rendered objects for `--set`s or value files."""

    def run(*arguments: str | Path) -> list[dict[str, Any]]:
        done = helm("template", "rljob", CHART, "--namespace", "rljob-system", *arguments)
        assert done.returncode == 0, done.stderr
        return [item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item]

    return run
