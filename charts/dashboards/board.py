"""A dashboard in our own words, and Grafana's JSON of it, built by Grafana's Foundation SDK."""

import json
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableHide, VariableRefresh
from grafana_foundation_sdk.models.prometheus import QueryEditorMode

Unit = Literal["short", "percentunit", "s", "bytes", "none", "reqps"]
COLUMNS = 24


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and what its lines are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. `width` of 24 columns; a stat shows the last value alone."""

    title: str
    queries: tuple[Query, ...]
    text: str
    unit: Unit = "short"
    kind: Literal["lines", "stacked", "stat"] = "lines"
    width: int = 8
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top, filled from the values of a label."""

    name: str
    title: str
    query: str


@dataclass(frozen=True)
class Board:
    """A dashboard; its file is named like the end of its uid."""

    name: str
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()


def to_json(board: Board) -> str:
    """The dashboard as Grafana reads it."""
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    built = (
        dashboard.Dashboard(f"RLJob / {board.title}")
        .uid(f"rljob-{board.name}")
        .description(board.text)
        .tags(["rljob", "generated"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(source.hide(VariableHide.DONT_HIDE))
    )
    for variable in board.variables:
        built = built.with_variable(_variable(variable))
    number = 0
    for row in board.rows:
        built = built.with_row(dashboard.Row(row.title).id(number := number + 1))
        for panel in row.panels:
            built = built.with_panel(_panel(panel).id(number := number + 1))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _source() -> DataSourceRef:
    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _variable(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.title)
        .datasource(_source())
        .query({"qryType": 1, "query": variable.query, "refId": variable.name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
    )


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    base: stat.Panel | timeseries.Panel
    if panel.kind == "stat":
        base = stat.Panel().height(4).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        base = timeseries.Panel().height(8).show_points(common_model.VisibilityMode.AUTO)
        base = base.fill_opacity(30 if panel.kind == "stacked" else 6).line_width(1)
        if panel.kind == "stacked":
            base = base.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A"))
        legend = common.VizLegendOptions().display_mode(common_model.LegendDisplayMode.LIST).show_legend(True)
        base = base.legend(legend.placement(common_model.LegendPlacement.BOTTOM).calcs(["lastNotNull"]))
        base = base.tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    base = base.title(panel.title).description(panel.text).unit(panel.unit).span(panel.width).datasource(_source())
    if panel.low is not None:
        base = base.min(panel.low)
    if panel.high is not None:
        base = base.max(panel.high)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).ref_id(letter).datasource(_source())
        target = target.legend_format(query.legend or "__auto").editor_mode(QueryEditorMode.CODE)
        base = base.with_target(target.instant() if panel.kind == "stat" else target.range())
    return base
