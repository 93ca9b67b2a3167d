"""A dashboard's panels as an SVG, drawn from what a Prometheus answered. Grafana itself draws finer ones."""

import re
from collections.abc import Sequence
from html import escape

from rljob_trainer.report.svg import Line, line_chart, number

from charts.dashboards.results import PanelResult, Points

CELL = 20
"""Pixels of a column of the grid of 24; a row of it is 30."""
ROW, GAP, TOP = 30, 8, 44
COLOURS = ("#2f6fde", "#d9652b", "#1f9d6b", "#9b59d0", "#c2a00b", "#d1427d", "#3aa0b5", "#98a2b3")
_STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#667085;font-size:11px}.title{font-size:13px;font-weight:600;fill:#1d2129}"
    ".big{font-size:26px;fill:#1d2129}.grid{stroke:#e4e7ec}.series{fill:none;stroke-width:2}"
) + "".join(f".series.s{i}{{stroke:{c}}}.dot.s{i}{{fill:{c}}}" for i, c in enumerate(COLOURS))


def draw(title: str, panels: Sequence[PanelResult]) -> str:
    """The picture."""
    width = 24 * CELL
    bottom = max(panel.place["y"] + panel.place["h"] for panel in panels)
    scale = 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * scale} {TOP + bottom * ROW}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="100%" height="100%" fill="#f4f5f7"/><text class="title" x="12" y="27">{escape(title)}</text>',
    ]
    first = min(panel.place["y"] for panel in panels)
    start = min((points[0][0] for panel in panels for _, points in panel.series if points), default=0.0)
    for panel in panels:
        x, y = panel.place["x"] * CELL * scale, TOP + (panel.place["y"] - first) * ROW
        w, h = panel.place["w"] * CELL * scale - GAP, panel.place["h"] * ROW - GAP
        parts.append(f'<svg x="{x}" y="{y}" width="{w}" height="{h}">{_panel(panel, w, h, start)}</svg>')
    parts.append("</svg>\n")
    return "".join(parts)


def _panel(panel: PanelResult, width: int, height: int, start: float) -> str:
    frame = f'<rect width="{width}" height="{height}" rx="4" fill="#fff" stroke="#e4e7ec"/>'
    head = f'<text class="title" x="10" y="20">{escape(panel.title)}</text>'
    if panel.kind == "stat":
        shown = _last(panel)
        return f'{frame}{head}<text class="big" x="10" y="{height - 24}">{escape(shown)}</text>'
    factor = {"percentunit": 100.0, "bytes": 2.0**-20}.get(panel.unit, 1.0)
    told = _told(panel)[:8]
    lines = [Line(name, [((time - start) / 60, value * factor) for time, value in points]) for name, points in told]
    chart = re.sub(r"<div.*?</div>", "", line_chart(lines, x_label="minutes"))
    chart = re.sub(r"<title>.*?</title>", "", chart)  # thousands of tooltips that a picture does not show
    chart = re.sub(r"<circle [^>]*></circle>", "", chart)
    inside = chart.replace("<svg ", f'<svg x="4" y="28" width="{width - 8}" height="{height - 62}" ', 1)
    legend, x = [], 10
    for index, (name, _) in enumerate(told[:6]):
        label = name[:34]
        legend.append(f'<rect x="{x}" y="{height - 24}" width="9" height="9" fill="{COLOURS[index % 8]}"/>')
        legend.append(f'<text x="{x + 13}" y="{height - 16}">{escape(label)}</text>')
        x += 26 + 6 * len(label)
        if x > width - 60:
            break
    unit = {"percentunit": "%", "s": "seconds", "bytes": "MiB"}.get(panel.unit, "")
    corner = f'<text x="{width - 10}" y="20" text-anchor="end">{unit}</text>'
    return f"{frame}{head}{corner}{inside}{''.join(legend)}"


def _told(panel: PanelResult) -> list[tuple[str, Points]]:
    """The series, without those that are 0 throughout where others are not."""
    moving = [(name, points) for name, points in panel.series if any(value for _, value in points)]
    return moving or panel.series


def _last(panel: PanelResult) -> str:
    values = [(name, points[-1][1]) for name, points in panel.series if points]
    if panel.title == "Stage":
        return ", ".join(name for name, _ in values)
    suffix = {"s": " s"}.get(panel.unit, "")
    shown = [f"{value:.0%}" if panel.unit == "percentunit" else f"{number(value)}{suffix}" for _, value in values]
    return ", ".join(shown[:3]) or "no data"
