"""What each process tells Prometheus, its names, and the page on it."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rljob_cli.metrics_docs import Row, metrics_reference, rows
from rljob_operator.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
UNITS = ("_seconds", "_bytes", "_ratio", "_tokens")


def test_the_reference_is_fresh() -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert text == metrics_reference(), "stale: run `make generate`"


@pytest.mark.parametrize("row", [row for found in rows().values() for row in found], ids=lambda row: row.name)
def test_names_follow_the_conventions_of_prometheus(row: Row) -> None:
    assert re.fullmatch(r"rljob_[a-z0-9]+(_[a-z0-9]+)*", row.name)
    assert row.name.endswith("_total") == (row.kind == "counter")
    assert not re.search(r"_(ms|millis|minutes|percent|mb|kb|info_info)(_|$)", row.name), "base units alone"
    assert row.help.endswith(".")
    assert not {"job", "instance", "namespace", "pod"} & set(row.labels), "labels that Prometheus puts on targets"


def test_no_two_processes_mean_different_things_by_one_name() -> None:
    names = [row.name for found in rows().values() for row in found]
    assert len(names) == len(set(names))


def test_a_job_is_in_one_phase_until_it_is_gone() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.job(("team", "a"), {"phase": "Running"})
    metrics.job(("team", "a"), {"phase": "Failed"})
    text = generate_latest(metrics.registry).decode()
    assert re.findall(r"^rljob_job_phase\{.*", text, re.MULTILINE) == [
        'rljob_job_phase{job_name="a",job_namespace="team",phase="Failed"} 1.0'
    ]
    metrics.job(("team", "a"), None)
    assert "rljob_job_phase{" not in generate_latest(metrics.registry).decode()


def test_a_condition_of_trouble_is_a_series_while_it_holds() -> None:
    metrics = Metrics(CollectorRegistry())

    def told(**conditions: str) -> list[str]:
        status = {"phase": "Running", "conditions": [{"type": k, "status": v} for k, v in conditions.items()]}
        metrics.job(("team", "a"), status)
        return re.findall(r"^rljob_job_condition\{(.*)\} 1.0", generate_latest(metrics.registry).decode(), re.MULTILINE)

    assert told(Accepted="True", RewardStalled="False", Stalled="True", EntropyCollapsed="True") == [
        'condition="Stalled",job_name="a",job_namespace="team"',
        'condition="EntropyCollapsed",job_name="a",job_namespace="team"',
    ]
    assert told(Accepted="False", Stalled="False") == []
    told(Stalled="True")
    metrics.job(("team", "a"), None)
    assert "rljob_job_condition{" not in generate_latest(metrics.registry).decode()


def test_a_job_with_a_refused_object_is_a_series_until_it_is_mended() -> None:
    metrics = Metrics(CollectorRegistry())

    def series() -> list[str]:
        text = generate_latest(metrics.registry).decode()
        return re.findall(r"^rljob_job_resources_refused\{(.*)\} 1.0", text, re.MULTILINE)

    for status, expected in (("False", ['job_name="a",job_namespace="team"']), ("True", [])):
        conditions = [{"type": "ResourcesApplied", "status": status}]
        metrics.job(("team", "a"), {"phase": "Pending", "conditions": conditions})
        assert series() == expected
    metrics.job(("team", "a"), {"conditions": [{"type": "ResourcesApplied", "status": "False"}]})
    metrics.job(("team", "a"), None)
    assert series() == []
