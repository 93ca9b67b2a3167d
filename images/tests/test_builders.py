"""Which program builds the images."""

import pytest

from images import builders


def test_where_nothing_builds_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(builders.BuildError, match="apt-get install buildah"):
        builders.choose()


def test_for_the_node_of_the_e2e_cluster_buildah_is_installed_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert isinstance(builders.choose(install=True), builders.Buildah)
    with pytest.raises(builders.BuildError, match="podman"):  # what was asked for is not replaced
        builders.choose("podman", install=True)
