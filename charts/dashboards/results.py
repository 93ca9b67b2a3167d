"""What a Prometheus answers to the queries of a dashboard's JSON."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

VARIABLES = {"$namespace": ".*", "$job": ".*", "$__rate_interval": "1m"}
Points = list[tuple[float, float]]
Ask = Callable[[str], list[tuple[dict[str, str], Points]]]
"""From PromQL to series: labels, and points (Unix time, value)."""


@dataclass
class PanelResult:
    """A panel with its data."""

    title: str
    text: str
    kind: str
    unit: str
    place: dict[str, int]
    series: list[tuple[str, Points]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    """Queries that returned nothing."""


def filled(expr: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """The expression with the dashboard's variables set: to all, unless told otherwise."""
    for name, value in variables.items():
        expr = expr.replace(name, value)
    return expr


def ask_all(board: dict[str, Any], ask: Ask, variables: Mapping[str, str] = VARIABLES) -> list[PanelResult]:
    """Ask for every panel of a dashboard."""
    results = []
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        unit = panel["fieldConfig"]["defaults"].get("unit", "short")
        result = PanelResult(panel["title"], panel["description"], panel["type"], unit, panel["gridPos"])
        for target in panel["targets"]:
            expr = filled(target["expr"], variables)
            found = ask(expr)
            if not found:
                result.empty.append(expr)
            result.series += [(_legend(target["legendFormat"], labels), points) for labels, points in found]
        results.append(result)
    return results


def _legend(form: str, labels: dict[str, str]) -> str:
    if form == "__auto":
        return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()) if name != "__name__")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), form)
