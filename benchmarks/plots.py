"""Draws bars and lines as SVG that suits light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
LABELS = 250
ROW = 26
FONT = "font-family='system-ui, sans-serif' font-size='13'"
# Of ours, of what it is compared to, and of a third; told apart by brightness too.
STYLE = """<style>
.ours { fill: #2563c9; stroke: #2563c9 } .other { fill: #a3a9b3; stroke: #a3a9b3 } .third { fill: #c2570c; stroke: #c2570c }
.text { fill: #1f2328 } .quiet { fill: #59636e } .grid { stroke: #d9dee4 } .spread { stroke: #1f2328 }
@media (prefers-color-scheme: dark) {
.ours { fill: #5b9bff; stroke: #5b9bff } .other { fill: #6b7480; stroke: #6b7480 } .third { fill: #f0883e; stroke: #f0883e }
.text { fill: #e6edf3 } .quiet { fill: #9198a1 } .grid { stroke: #30363d } .spread { stroke: #e6edf3 }
}
</style>"""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    low: float
    high: float
    is_ours: bool


def bars(title: str, unit: str, given: Sequence[Bar]) -> str:
    """One bar for each, from 0, with a line from the least to the most that was measured."""
    top, most = 52, max(bar.high for bar in given)
    scale = (WIDTH - LABELS - 90) / most
    parts = [_text(0, 18, title, bold=True), _text(0, 38, unit, kind="quiet")]
    for n, bar in enumerate(given):
        y, end = top + n * ROW, LABELS + bar.value * scale
        parts += [
            _text(LABELS - 8, y + 14, bar.label, anchor="end"),
            f"<rect class='{'ours' if bar.is_ours else 'other'}' x='{LABELS}' y='{y + 2}' rx='2' "
            f"width='{max(1.0, end - LABELS):.1f}' height='{ROW - 10}'/>",
            _line(LABELS + bar.low * scale, y + 10, LABELS + bar.high * scale, y + 10, "spread"),
            _text(LABELS + bar.high * scale + 8, y + 14, number(bar.value)),
        ]
    return _svg(top + len(given) * ROW + 6, title, parts)


def lines(title: str, across: str, up: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Both axes logarithmic: what is proportional rises at 45 degrees, what does not depend lies flat."""
    left, top, right, bottom = 70, 60, WIDTH - 170, 330
    points = [point for line in series.values() for point in line]
    xs, ys = _decades([x for x, _ in points]), _decades([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        along = (math.log10(max(x, 10 ** xs[0])) - xs[0]) / (xs[1] - xs[0])
        high = (math.log10(y) - ys[0]) / (ys[1] - ys[0])
        return left + along * (right - left), bottom - high * (bottom - top)

    parts = [_text(0, 18, title, bold=True), _text(0, 40, up, kind="quiet")]
    for decade in range(ys[0], ys[1] + 1):
        _, y = at(1, 10.0**decade)
        parts += [
            _line(left, y, right, y, "grid"),
            _text(left - 8, y + 4, number(10.0**decade), anchor="end", kind="quiet"),
        ]
    for decade in range(xs[0], xs[1] + 1):
        x, _ = at(10.0**decade, 1)
        parts += [
            _line(x, top, x, bottom, "grid"),
            _text(x, bottom + 18, number(10.0**decade), anchor="middle", kind="quiet"),
        ]
    parts.append(_text((left + right) / 2, bottom + 38, across, anchor="middle", kind="quiet"))
    for kind, (name, line) in zip(("ours", "other", "third"), series.items(), strict=False):
        placed = [at(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f"<polyline class='{kind}' points='{path}' style='fill: none; stroke-width: 2'/>")
        parts += [f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='3.5'/>" for x, y in placed]
        parts.append(_text(placed[-1][0] + 10, placed[-1][1] + 4, name))
    return _svg(bottom + 50, title, parts)


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    positive = [value for value in values if value > 0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return low, max(high, low + 1)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f"<line class='{kind}' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "text", bold: bool = False) -> str:
    weight = " font-weight='600'" if bold else ""
    return f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{weight}>{escape(text)}</text>"


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' role='img' {FONT}>"
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>", ""])
