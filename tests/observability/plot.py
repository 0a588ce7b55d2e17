"""Panels as SVG: small line charts in a grid, from what Prometheus answered."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from tests.observability.prometheus import Series
from tests.observability.queries import Panel

_COLUMNS: Final = 4
_WIDTH, _HEIGHT = 330, 210
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 46, 26, 270, 104
_LINES_MAX: Final = 8
"""Of one panel: the largest."""
_LEGEND_MAX: Final = 6
_MISSING: Final = re.compile(r"\{\{\w+\}\}")
_COLORS: Final = [
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#17becf",
    "#8c564b",
    "#777",
]
_UNITS: Final = {"bytes": (1 << 20, " MiB"), "percentunit": (0.01, " %"), "s": (1, " s")}

Lines = list[tuple[str, list[tuple[float, float]]]]
"""Legend and points."""


def lines_of(answers: Sequence[tuple[str, Series]]) -> Lines:
    """The series of a panel's queries by their legends, largest first."""
    found = [
        (_legend(legend, labels), points) for legend, series in answers for labels, points in series
    ]
    return sorted(found, key=lambda line: -max(value for _, value in line[1]))[:_LINES_MAX]


def _legend(legend: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return _MISSING.sub("", legend).strip()


def write(path: Path, drawn: Sequence[tuple[Panel, Lines]], start: float, end: float) -> None:
    """Writes the picture: the panels in their order, those without a series too."""
    rows = -(-len(drawn) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        '<g font-family="sans-serif" font-size="9">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (panel, lines) in enumerate(drawn):
        x, y = number % _COLUMNS * _WIDTH, number // _COLUMNS * _HEIGHT
        parts += [f'<g transform="translate({x},{y})">', *_panel(panel, lines, start, end), "</g>"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</g></svg>"]) + "\n", encoding="utf-8")


def _panel(panel: Panel, lines: Lines, start: float, end: float) -> list[str]:
    top = max((value for _, points in lines for _, value in points), default=0.0) or 1.0
    scale, unit = _UNITS.get(panel.unit, (1, ""))
    bottom = _TOP + _PLOT_HEIGHT
    parts = [f'<text x="{_LEFT}" y="15" font-size="11" font-weight="bold">{panel.title}</text>']
    for share in (0, 0.5, 1):
        y = bottom - share * _PLOT_HEIGHT
        label = f"{share * top / scale:.3g}{unit}"
        parts += [
            f'<path d="M{_LEFT},{y}h{_PLOT_WIDTH}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 4}" y="{y + 3}" text-anchor="end">{label}</text>',
        ]
    span = f"{end - start:.0f} s"
    parts.append(
        f'<text x="{_LEFT + _PLOT_WIDTH}" y="{bottom + 11}" text-anchor="end">{span}</text>'
    )
    if not lines:
        middle = _LEFT + _PLOT_WIDTH / 2
        parts.append(f'<text x="{middle}" y="{bottom - 48}" text-anchor="middle">no event</text>')
    for number, (legend, points) in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        path = " ".join(
            f"{_LEFT + (at - start) / (end - start) * _PLOT_WIDTH:.0f},"
            f"{bottom - max(0.0, value) / top * _PLOT_HEIGHT:.0f}"
            for at, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}"/>')
        if number < _LEGEND_MAX:
            y = bottom + 13 + 10 * number
            name = escape(legend[:52])
            parts.append(f'<text x="{_LEFT}" y="{y}" fill="{color}">{name}</text>')
    return parts
