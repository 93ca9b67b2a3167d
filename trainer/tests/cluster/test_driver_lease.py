"""Of all drivers that could run, one may."""

import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiException
from rljob_api.contract import labels
from rljob_trainer.cluster.lease import Lease, LeaseLostError, LeaseUnreachableError


class FakeApi:
    """A CoordinationV1Api with one Lease and resource versions."""

    def __init__(self, attempt: str | None = "1") -> None:
        annotations = None if attempt is None else {labels.ATTEMPT: attempt}
        self.lease = SimpleNamespace(
            metadata=SimpleNamespace(annotations=annotations, resource_version=1),
            spec=SimpleNamespace(
                holder_identity=None,
                renew_time=None,
                acquire_time=None,
                lease_duration_seconds=None,
                lease_transitions=None,
            ),
        )
        self.down: Exception | None = None
        self.lock = threading.Lock()

    def read_namespaced_lease(self, name: str, namespace: str, _request_timeout: Any) -> Any:
        if self.down is not None:
            raise self.down
        with self.lock:
            return SimpleNamespace(
                metadata=SimpleNamespace(**vars(self.lease.metadata)), spec=SimpleNamespace(**vars(self.lease.spec))
            )

    def replace_namespaced_lease(self, name: str, namespace: str, lease: Any, _request_timeout: Any) -> None:
        if self.down is not None:
            raise self.down
        with self.lock:
            if lease.metadata.resource_version != self.lease.metadata.resource_version:
                raise ApiException(status=409, reason="Conflict")
            self.lease.spec = SimpleNamespace(**vars(lease.spec))
            self.lease.metadata.resource_version += 1

    def held_by(self, holder: str, age_seconds: float, duration: int = 120) -> None:
        self.lease.spec.holder_identity = holder
        self.lease.spec.renew_time = datetime.now(UTC) - timedelta(seconds=age_seconds)
        self.lease.spec.lease_duration_seconds = duration


def lease(api: FakeApi, attempt: int = 1, incarnation: str = "0001-aa", **options: Any) -> Lease:
    return Lease(api, "ns", "job-driver", attempt, incarnation, **options)


def test_a_free_lease_is_taken_and_given_up() -> None:
    api = FakeApi()
    mine = lease(api)
    mine.acquire(limit=5.0)
    assert api.lease.spec.holder_identity == "1/0001-aa"
    mine.release()
    assert api.lease.spec.holder_identity is None


def test_another_attempt_than_the_operator_wants_is_refused() -> None:
    with pytest.raises(LeaseLostError, match="is for attempt 2; this driver is attempt 1"):
        lease(FakeApi(attempt="2")).acquire(limit=5.0)


def test_a_driver_of_an_earlier_attempt_is_superseded_at_once() -> None:
    api = FakeApi(attempt="2")
    api.held_by("1/0001-aa", age_seconds=1.0)
    later = lease(api, attempt=2, incarnation="0002-bb")
    later.acquire(limit=5.0)
    assert api.lease.spec.holder_identity == "2/0002-bb"
    later.release()


def test_another_incarnation_of_the_attempt_is_waited_for_until_it_expires() -> None:
    api = FakeApi()
    api.held_by("1/0001-old", age_seconds=119.0)
    mine = lease(api)
    mine.acquire(limit=30.0)
    assert api.lease.spec.holder_identity == "1/0001-aa"
    mine.release()


def test_a_holder_that_renews_is_not_robbed() -> None:
    api = FakeApi()
    api.held_by("1/0001-old", age_seconds=0.0)
    with pytest.raises(LeaseLostError, match="held by another driver"):
        lease(api).acquire(limit=1.0)
    assert api.lease.spec.holder_identity == "1/0001-old"


def test_losing_the_lease_is_told() -> None:
    api, lost, told = FakeApi(), [], threading.Event()

    def on_lost(error: Exception) -> None:
        lost.append(error)
        told.set()

    mine = lease(api, renew=0.05, on_lost=on_lost)
    mine.acquire(limit=5.0)
    api.lease.metadata.annotations[labels.ATTEMPT] = "2"
    assert told.wait(timeout=30.0)
    assert isinstance(lost[0], LeaseLostError)


def test_an_absent_apiserver_is_survived_for_as_long_as_the_lease_lasts() -> None:
    api, lost, told = FakeApi(), [], threading.Event()

    def on_lost(error: Exception) -> None:
        lost.append(error)
        told.set()

    mine = lease(api, renew=0.05, duration=1, on_lost=on_lost)
    mine.acquire(limit=5.0)
    api.down = ConnectionError("refused")
    assert told.wait(timeout=30.0)
    assert isinstance(lost[0], LeaseUnreachableError)


def test_two_drivers_racing_for_one_lease_do_not_both_win() -> None:
    api = FakeApi()
    winners: list[str] = []

    def race(incarnation: str) -> None:
        mine = lease(api, incarnation=incarnation)
        try:
            mine.acquire(limit=2.0)
        except LeaseLostError:
            return
        winners.append(incarnation)

    threads = [threading.Thread(target=race, args=(f"0001-{index}",)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    assert len(winners) == 1
    assert api.lease.spec.holder_identity == f"1/{winners[0]}"


class TestConfirm:
    """Before a write the driver asks: a process that slept does not know yet what its renewing thread will find."""

    @pytest.fixture
    def asleep(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A driver that holds its lease and whose last renewal was 200 s ago."""
        api, told = FakeApi(), []
        mine = lease(api, renew=3600.0, on_lost=told.append)
        mine.acquire(limit=5.0)
        mine._renewed = mine._confirmed = mine._renewed - 200.0
        return SimpleNamespace(api=api, lease=mine, told=told)

    def test_nobody_took_it(self, asleep: Any) -> None:
        assert asleep.lease.confirm()
        assert asleep.told == []

    def test_the_operator_wants_another_attempt(self, asleep: Any) -> None:
        asleep.api.lease.metadata.annotations[labels.ATTEMPT] = "2"
        assert not asleep.lease.confirm()
        assert isinstance(asleep.told[0], LeaseLostError)

    def test_another_incarnation_holds_it(self, asleep: Any) -> None:
        asleep.api.held_by("1/0001-bb", age_seconds=1.0)
        assert not asleep.lease.confirm()
        assert isinstance(asleep.told[0], LeaseLostError)

    def test_nobody_answers_for_longer_than_it_lasts(self, asleep: Any) -> None:
        asleep.api.down = ConnectionError("refused")
        assert not asleep.lease.confirm()
        assert isinstance(asleep.told[0], LeaseUnreachableError)

    def test_a_minute_without_the_apiserver_is_survived(self, asleep: Any) -> None:
        asleep.lease._renewed += 140.0
        asleep.api.down = ConnectionError("refused")
        assert asleep.lease.confirm()


def test_a_write_of_the_operators_at_the_same_moment_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    mine = lease(api)
    mine.acquire(limit=5.0)
    real = api.replace_namespaced_lease
    times = iter([ApiException(status=409, reason="Conflict")])

    def meets_another(*arguments: Any, **options: Any) -> None:
        for error in times:
            raise error
        real(*arguments, **options)

    monkeypatch.setattr(api, "replace_namespaced_lease", meets_another)
    assert mine._held()
    mine.release()
