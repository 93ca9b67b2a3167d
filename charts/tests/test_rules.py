"""The alerts fire when they should (promtool decides), ask for metrics that exist, and are explained."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.tests.conftest import CHART
from charts.tests.test_dashboards import exported
from e2e.support import prometheus

ROOT = CHART.parents[1]
FILE = CHART / "rules/rljob.yaml"
TESTS = Path(__file__).parent / "rules_test.yaml"
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]


@pytest.fixture(scope="module")
def promtool() -> str:
    if not prometheus.available():
        pytest.skip("no promtool, and no apt-get to fetch it by")
    return prometheus.binary("promtool")


@pytest.mark.slow
def test_promtool_finds_that_every_alert_does_what_it_says(promtool: str) -> None:
    for arguments in (["check", "rules", str(FILE)], ["test", "rules", str(TESTS)]):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_in_both_states() -> None:
    """On the same series, so that it is silent because of the time and not for want of data."""
    tests = [test["alert_rule_test"] for test in yaml.safe_load(TESTS.read_text())["tests"]]
    fires = [{case["alertname"] for case in cases if case["exp_alerts"]} for cases in tests]
    silent = [{case["alertname"] for case in cases if not case["exp_alerts"]} for cases in tests]
    both = set().union(*(one & other for one, other in zip(fires, silent, strict=True)))
    assert both == {rule["alert"] for rule in ALERTS}


@pytest.mark.slow
def test_every_alert_that_waits_is_tested_while_it_waits(promtool: str, tmp_path: Path) -> None:
    """Without its wait, each would be found to fire too early."""
    rules = yaml.safe_load(FILE.read_text())
    waits = [rule for group in rules["groups"] for rule in group["rules"] if rule.pop("for", None)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    tests = TESTS.read_text().replace("../rljob/rules/rljob.yaml", "rules.yaml")  # as text: 0x20 is no number there
    (tmp_path / "tests.yaml").write_text(tests)
    command = [promtool, "test", "rules", "tests.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    too_early = set(re.findall(r"alertname: ?(\w+), time: \w+,\s+exp:\[\s*\]", done.stdout + done.stderr))
    assert too_early == {rule["alert"] for rule in waits}, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_a_rule_asks_for_what_is_there(rule: dict[str, Any]) -> None:
    recorded = {other["record"] for other in RULES if "record" in other}
    used = set(re.findall(r"\brljob[a-z0-9_:]+", rule["expr"]))
    assert used
    assert used <= exported() | recorded, used - exported() - recorded


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert f"| `{rule['alert']}` |" in (ROOT / "docs/alerts.md").read_text(encoding="utf-8"), (
        "explain it in docs/alerts.md"
    )
