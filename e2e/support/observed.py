"""A Prometheus that scrapes what the chart's PodMonitors choose; what dashboards and rules of the chart get from it."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charts.dashboards.picture import draw
from charts.dashboards.results import VARIABLES, PanelResult, ask_all
from e2e.support import discovery, prometheus
from e2e.support.kubectl import Kubectl
from e2e.support.monitors import apiserver_proxy, scrape_configs

CHART = Path(__file__).resolve().parents[2] / "charts/rljob"
POINTS = 100
"""Of a line, at most."""


@contextlib.contextmanager
def scraping(kubectl: Kubectl, monitors: list[dict[str, Any]], folder: Path) -> Iterator[prometheus.Prometheus]:
    """A Prometheus with the chart's rules that scrapes every two seconds, its data in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with apiserver_proxy(kubectl) as proxy, discovery.serving(f"http://{proxy}") as found:
        config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "5s"},
            "rule_files": [str(CHART / "rules/rljob.yaml")],
            "scrape_configs": scrape_configs(monitors, found, proxy),
        }
        with prometheus.running(folder, config, port) as client:
            yield client


def scraped(client: prometheus.Prometheus) -> set[str]:
    """Roles of pods (`operator` for one without) that answer their scrapes."""
    return {one["labels"].get("rljob_io_role", "operator") for one in client.targets() if one["health"] == "up"}


def panels(
    client: prometheus.Prometheus, start: float, end: float, namespace: str, job: str
) -> dict[str, list[PanelResult]]:
    """Every dashboard by its name, each panel with what Prometheus has for this job between the two times."""
    variables = VARIABLES | {"$namespace": namespace, "$job": job}
    step = max(2.0, (end - start) / POINTS)
    return {
        file.stem: ask_all(
            json.loads(file.read_text(encoding="utf-8")),
            lambda expr: client.range(expr, start, end, step),
            variables,
        )
        for file in sorted((CHART / "dashboards").glob("*.json"))
    }


def rule_errors(client: prometheus.Prometheus) -> list[str]:
    """Rules that Prometheus could not evaluate, or has not yet."""
    rules = [rule for group in client.get("rules")["groups"] for rule in group["rules"]]
    assert rules, "no rule is loaded"
    return [f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}" for rule in rules if rule["health"] != "ok"]


def draw_boards(boards: dict[str, list[PanelResult]], folder: Path) -> list[Path]:
    """A picture of each dashboard."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, found in boards.items():
        files.append(folder / f"dashboard-{name}.svg")
        files[-1].write_text(draw(f"RLJob / {name.capitalize()}", found), encoding="utf-8")
    return files
