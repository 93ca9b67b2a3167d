"""Fixtures of the tests of the cluster tooling."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Folders of a cluster that is not there."""
    return Paths(cache=tmp_path / "cache", state=tmp_path / "state")
