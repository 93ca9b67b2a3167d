"""What a cluster may answer, as sentences; a real one is asked in e2e/tests/test_cli_on_cluster.py."""

import json
import socket
from pathlib import Path

import pytest
import yaml
from kubernetes.client.exceptions import ApiException
from rljob_api.errors import UserError
from rljob_cli.app import app
from rljob_cli.cluster import Cluster
from rljob_cli.exits import ClusterError
from typer.testing import CliRunner

runner = CliRunner()


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster that refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    return path


def refused(status: int, message: str, **details: object) -> ApiException:
    error = ApiException(status=status, reason="reason")
    error.body = json.dumps({"message": message, "details": details})
    return error


def test_the_namespace_is_that_of_the_context(kubeconfig: Path) -> None:
    assert Cluster().namespace == "team"
    assert Cluster("other").namespace == "other"


def test_a_cluster_that_does_not_answer(kubeconfig: Path) -> None:
    result = runner.invoke(app, ["status"])
    assert result.exit_code == 3
    assert "does not answer" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_cluster_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    monkeypatch.setenv("KUBECONFIG", missing)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", missing)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = runner.invoke(app, ["suspend", "a"])
    assert result.exit_code == 3
    assert "no cluster is configured" in result.stderr


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (refused(404, "", name="a", kind="rljobs"), ClusterError, "RLJob a is not there (namespace team)"),
        (refused(404, "404 page not found"), ClusterError, "does not serve rljob.io/v1alpha1"),
        (refused(404, "", name="team", kind="namespaces"), ClusterError, "the namespace team is not there"),
        (refused(401, "Unauthorized"), ClusterError, "does not know these credentials"),
        (refused(403, "rljobs is forbidden: User x"), ClusterError, "not allowed: rljobs is forbidden: User x"),
        (refused(409, "conflict with kubectl: .spec.seed"), UserError, "conflict with kubectl: .spec.seed"),
        (
            refused(422, "invalid", causes=[{"field": "spec.seed", "message": "cannot change"}]),
            UserError,
            "spec.seed: cannot change",
        ),
        (refused(400, 'unknown field "spec.x"'), UserError, 'unknown field "spec.x"'),
        (refused(500, "etcd is gone"), ClusterError, "the apiserver answered 500: etcd is gone"),
    ],
)
def test_answers_become_sentences(kubeconfig: Path, answer: ApiException, kind: type, said: str) -> None:
    with pytest.raises(kind) as shown, Cluster()._explained("RLJob a"):
        raise answer
    assert said in str(shown.value)
    assert shown.value.exit_code == (3 if kind is ClusterError else 2)


def test_watching_is_for_people(kubeconfig: Path) -> None:
    result = runner.invoke(app, ["status", "-w", "-o", "json"])
    assert result.exit_code == 2
    assert "--watch shows text only" in result.stderr


def test_a_log_as_json_is_one_document_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    from rljob_cli.output import Format
    from rljob_cli.remote import _print

    _print(iter(["step 1", 'a "quoted" word']), "head-0", Format.json)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"pod": "head-0", "line": "step 1"}, {"pod": "head-0", "line": 'a "quoted" word'}]
