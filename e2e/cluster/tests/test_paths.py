from __future__ import annotations

from pathlib import Path

from e2e.cluster.paths import DEFAULT_STATE, Paths
from e2e.cluster.run import write


def test_the_cache_is_named_by_the_environment() -> None:
    assert Paths.from_env({"RLJOB_CACHE": "/a", "XDG_CACHE_HOME": "/b"}).cache == Path("/a")
    assert Paths.from_env({"XDG_CACHE_HOME": "/b", "HOME": "/c"}).cache == Path("/b/rljob")
    assert Paths.from_env({"HOME": "/c"}).cache == Path("/c/.cache/rljob")


def test_the_state_does_not_follow_the_cache() -> None:
    assert Paths.from_env({"RLJOB_CACHE": "/a"}).state == DEFAULT_STATE
    assert Paths.from_env({"RLJOB_CLUSTER_STATE": "/s"}).state == Path("/s")


def test_sockets_fit_their_limit() -> None:
    assert len(str(Paths.from_env({"HOME": "/root"}).containerd_socket)) + len(".ttrpc") < 108


def test_a_secret_is_written_with_its_mode(tmp_path: Path) -> None:
    target = write(tmp_path / "new" / "key", "secret", mode=0o600)
    write(target, "another", mode=0o600)
    assert target.read_text() == "another"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["key"]
