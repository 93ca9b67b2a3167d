"""The operator's requests reach the driver."""

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiException
from rljob_api.contract.request import wants_suspend
from rljob_trainer.cluster.control import ControlPoller
from rljob_trainer.cluster.environment import cluster_environment


@pytest.mark.parametrize(
    ("text", "attempt", "expected"),
    [
        (None, 1, False),
        ("", 1, False),
        ('{"suspend": true, "generation": 4, "attempt": 2}', 2, True),
        ('{"suspend": true, "generation": 4, "attempt": 1}', 2, False),
        ('{"suspend": false, "attempt": 2}', 2, False),
    ],
)
def test_only_a_suspend_of_this_attempt_counts(text: str | None, attempt: int, expected: bool) -> None:
    assert wants_suspend(text, attempt) is expected


def test_the_poller_lives_through_absence_errors_and_nonsense() -> None:
    answers: list[Any] = [
        ApiException(status=404),
        ConnectionError("refused"),
        "not json",
        '{"suspend": true, "attempt": 3}',
    ]
    asked = threading.Event()

    class Api:
        def read_namespaced_config_map(self, name: str, namespace: str, _request_timeout: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(data={"request.json": answer})

    poller = ControlPoller(Api(), "ns", "job-control", 3, asked.set, interval=0.01)
    assert asked.wait(timeout=30.0)
    assert answers == []
    poller.close()


def test_a_wish_of_a_newer_operator_does_not_keep_the_driver_from_suspending() -> None:
    asked = threading.Event()

    class Api:
        def read_namespaced_config_map(self, name: str, namespace: str, _request_timeout: Any) -> Any:
            request = {"attempt": 3, "suspend": True, "engines": {"least": 2, "most": 4}, "drain": 7, "novel": []}
            return SimpleNamespace(data={"request.json": json.dumps(request)})

    poller = ControlPoller(Api(), "ns", "job-control", 3, asked.set, interval=0.01)
    assert asked.wait(timeout=30.0)
    poller.close()


def test_outside_a_cluster_there_is_no_environment() -> None:
    assert cluster_environment({"RLJOB_NAME": "a"}) is None
    found = cluster_environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "RLJOB_NAME": "a", "RLJOB_NAMESPACE": "b"})
    assert found is not None
    assert (found.name, found.namespace, found.control_config_map, found.lease) == ("a", "b", "a-control", None)
