"""Small line and bar charts as inline SVG. Colours come from the page's CSS, so that light and dark both read well."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 36
LARGEST = 1e30
"""Larger values are not drawn: beside them nothing else could be seen."""


@dataclass(frozen=True)
class Line:
    """A series: its name and its points (x, y). Points that are not finite, or huge, are left out."""

    name: str
    points: Sequence[tuple[float, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def number(value: float) -> str:
    """A number as short as it can be read."""
    if value == 0:
        return "0"
    if abs(value) >= 10000:
        return f"{value / 1000:.3g}k"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4g}"


def _drawable(point: tuple[float, float]) -> bool:
    return all(math.isfinite(value) and abs(value) < LARGEST for value in point)


def _spread(low: float, high: float) -> tuple[float, float]:
    """A range that can be drawn: one without extent is widened."""
    size = max(abs(low), abs(high))
    if high - low > max(1e-12, size * 1e-9):
        return low, high
    return low - (size * 0.1 or 0.5), high + (size * 0.1 or 0.5)


def line_chart(lines: Sequence[Line], *, x_label: str, y_from: float | None = None, y_to: float | None = None) -> str:
    """Lines over one x axis. Every point has its values as a tooltip when there are few."""
    lines = [Line(line.name, list(filter(_drawable, line.points))) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return '<p class="empty">no data</p>'
    x_low, x_high = min(xs), max(xs)
    y_low = min(ys) if y_from is None else min(y_from, *ys)
    y_high = max(ys) if y_to is None else max(y_to, *ys)
    (x_low, x_high), (y_low, y_high) = _spread(x_low, x_high), _spread(y_low, y_high)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(line.name for line in lines))}">'
    ]
    for value in ticks(y_low, y_high):
        y = place(x_low, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in ticks(x_low, x_high, 6):
        x = place(value, y_low)[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 21}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    for index, line in enumerate(lines):
        spots = [place(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(
            f'<polyline class="series s{index % 8}" points="{path}"><title>{escape(line.name)}</title></polyline>'
        )
        if len(spots) <= 80:
            for (x, y), (x_value, y_value) in zip(spots, line.points, strict=True):
                text = f"{line.name}: {number(y_value)} at {x_label} {number(x_value)}"
                dot = f'<circle class="dot s{index % 8}" cx="{x:.1f}" cy="{y:.1f}" r="2.2">'
                parts.append(f"{dot}<title>{escape(text)}</title></circle>")
    parts.append("</svg>")
    if len(lines) > 1:
        keys = "".join(
            f'<span class="key"><i class="s{index % 8}"></i>{escape(line.name)}</span>'
            for index, line in enumerate(lines)
        )
        parts.append(f'<div class="legend">{keys}</div>')
    return "".join(parts)


def stacked_bar(parts: Sequence[tuple[str, float]], unit: str) -> str:
    """One horizontal bar of shares, with a legend that has the numbers."""
    total = sum(value for _, value in parts)
    if total <= 0:
        return '<p class="empty">no data</p>'
    drawn = [f'<svg viewBox="0 0 {WIDTH} 26" role="img" aria-label="shares">']
    x = 0.0
    for index, (name, value) in enumerate(parts):
        width = value / total * WIDTH
        title = f"{name}: {number(value)} {unit} ({value / total:.0%})"
        drawn.append(
            f'<rect class="bar s{index % 8}" x="{x:.2f}" y="2" width="{max(width - 1, 0):.2f}" height="22">'
            f"<title>{escape(title)}</title></rect>"
        )
        x += width
    drawn.append("</svg>")
    keys = "".join(
        f'<span class="key"><i class="s{index % 8}"></i>{escape(name)} {number(value)} {escape(unit)} '
        f"({value / total:.0%})</span>"
        for index, (name, value) in enumerate(parts)
    )
    return "".join(drawn) + f'<div class="legend">{keys}</div>'
