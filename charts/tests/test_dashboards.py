"""The dashboards are fresh, fit Grafana's types, and ask for metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from rljob_cli.metrics_docs import rows
from rljob_operator.metrics import PHASES
from rljob_trainer.metrics.shared_port import SILENT

from charts.dashboards.all_boards import BOARDS
from charts.dashboards.board import Board, to_json
from charts.dashboards.picture import draw
from charts.dashboards.results import VARIABLES, PanelResult, ask_all, filled
from charts.tests.conftest import CHART

FOLDER = CHART / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))


def exported() -> set[str]:
    """Names of series that the processes expose."""
    suffixes = {"histogram": ["_bucket", "_sum", "_count"]}
    names = {f"{row.name}{end}" for found in rows().values() for row in found for end in suffixes.get(row.kind, [""])}
    return names | {SILENT, "process_resident_memory_bytes", "process_cpu_seconds_total"}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_dashboard_is_fresh(board: Board) -> None:
    text = (FOLDER / f"{board.name}.json").read_text(encoding="utf-8")
    assert text == to_json(board), "stale: run `make generate`"


def test_no_dashboard_is_left_over() -> None:
    assert {path.stem for path in FILES} == {board.name for board in BOARDS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_grafanas_own_types_hold_everything(path: Path) -> None:
    """A key that Grafana does not know would be lost on the way through its types."""
    board = json.loads(path.read_text(encoding="utf-8"))
    again = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    assert again == board


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_asks_for_what_is_there(path: Path) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    known = exported()
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets") or []]
    queries += [item["query"]["query"] for item in board["templating"]["list"] if item["type"] == "query"]
    assert len(queries) > 10
    for query in queries:
        used = set(re.findall(r"\b(?:rljob|process)_[a-z0-9_]+", query))
        assert used, query
        assert used <= known, f"{path.name}: {used - known}"
        assert not re.findall(r"\$(?!namespace|job|__rate_interval)\w+", query), query


def test_every_job_is_counted_once_or_is_at_rest() -> None:
    board = json.loads((FOLDER / "fleet.json").read_text(encoding="utf-8"))
    panels = [panel for panel in board["panels"] if panel["title"] in ("Running", "Waiting", "Failed")]
    phases = [phase for panel in panels for phase in re.findall(r'phase=~?"([\w|]+)"', panel["targets"][0]["expr"])]
    counted = "|".join(phases).split("|")
    assert sorted([*counted, "Suspending", "Suspended", "Succeeded"]) == sorted(PHASES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_lie_beside_one_another(path: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    panels: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
        if panel["type"] != "row":
            assert panel["description"].endswith((".", ",")), panel["title"]


def test_a_query_without_an_answer_is_told() -> None:
    board = json.loads(FILES[0].read_text(encoding="utf-8"))
    results = ask_all(board, lambda expr: [])
    assert all(result.empty for result in results)
    assert not any(name in expr for result in results for expr in result.empty for name in VARIABLES)
    assert filled('x{job_name=~"$job"}[$__rate_interval]') == 'x{job_name=~".*"}[1m]'
    assert filled('x{job_name=~"$job"}', VARIABLES | {"$job": "demo"}) == 'x{job_name=~"demo"}'


def test_a_picture_shows_every_panel_over_one_time() -> None:
    place = {"x": 0, "y": 1, "w": 12, "h": 8}
    early = PanelResult("Memory", "Of it.", "timeseries", "bytes", place)
    early.series = [("rank 0", [(60.0, 2.0**20), (120.0, 2.0**21)]), ("idle", [(60.0, 0.0), (120.0, 0.0)])]
    late = PanelResult("Done", "Share.", "stat", "percentunit", place | {"x": 12})
    late.series = [("", [(600.0, 0.25)])]
    picture = draw("Board", [early, late])
    ElementTree.fromstring(picture)
    for text in ("Board", "Memory", "Done", "MiB", "25%", ">rank 0<"):
        assert text in picture
    assert "idle" not in picture, "0 throughout, where others are not"
