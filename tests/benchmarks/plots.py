"""Plots of figures, as SVG, by matplotlib (`requirements/plots.txt`)."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.benchmarks.figures import Figure

_WIDTH_IN: Final = 9.0
_BAR_IN: Final = 0.32
_PANEL_IN: Final = 3.6
_REACHED: Final = "#2a7f62"
_NOT_REACHED: Final = "#b3403a"


class Standing(msgspec.Struct, frozen=True):
    """How a figure stands to its target: 1 is the target, and more is better."""

    name: str
    median: float
    lowest: float
    highest: float


def standing(figure: Figure) -> Standing:
    """Of a figure that has a target.

    Raises:
        ValueError: it has none.
    """
    if figure.target is None:
        raise ValueError(f"{figure.name} has no target")
    value = figure.target.value
    if figure.target.bound == "at least":
        sides = [each / value for each in (figure.median, *figure.values)]
    else:
        sides = [value / max(each, 1e-9) for each in (figure.median, *figure.values)]
    return Standing(figure.name, sides[0], min(sides), max(sides))


def plot_targets(figures: Sequence[Figure], path: Path) -> None:
    """A bar a figure that has a target, on a logarithmic axis whose 1 is the target."""
    bars = [standing(figure) for figure in figures if figure.target is not None]
    drawn = _figure(_WIDTH_IN, 1.2 + _BAR_IN * len(bars))
    axes = drawn.subplots()
    colors = [_REACHED if bar.median >= 1 else _NOT_REACHED for bar in bars]
    places = list(range(len(bars)))
    below = [bar.median - bar.lowest for bar in bars]
    above = [bar.highest - bar.median for bar in bars]
    axes.barh(places, [bar.median - 1 for bar in bars], left=1, color=colors)
    middles = [bar.median for bar in bars]
    axes.errorbar(middles, places, xerr=[below, above], fmt="none", ecolor="black", capsize=2)
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as good as the target; median, lowest and highest")
    _save(drawn, path)


def _save(drawn: Any, path: Path) -> None:
    """Writes an SVG whose bytes follow from what is drawn."""
    matplotlib: Any = importlib.import_module("matplotlib")
    with matplotlib.rc_context({"svg.hashsalt": "k9"}):
        drawn.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


def _figure(width_in: float, height_in: float) -> Any:
    module: Any = importlib.import_module("matplotlib.figure")
    return module.Figure(figsize=(width_in, height_in))


class Point(msgspec.Struct, frozen=True):
    """A figure at a number of rows."""

    rows: int
    median: float
    lowest: float
    highest: float


class Panel(msgspec.Struct, frozen=True):
    """Figures of one kind, as the rows grow."""

    title: str
    unit: str
    lines: dict[str, list[Point]]
    """By the name of a line, in ascending order of rows."""


def plot_growth(panels: Sequence[Panel], path: Path) -> None:
    """A panel below the other, both axes logarithmic; bars are the lowest and the highest."""
    drawn = _figure(_WIDTH_IN, _PANEL_IN * len(panels))
    grid = drawn.subplots(len(panels), 1, squeeze=False)
    for (axes,), panel in zip(grid, panels, strict=True):
        for name, points in panel.lines.items():
            below = [point.median - point.lowest for point in points]
            above = [point.highest - point.median for point in points]
            rows = [point.rows for point in points]
            medians = [point.median for point in points]
            axes.errorbar(rows, medians, yerr=[below, above], marker="o", capsize=2, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(panel.title)
        axes.set_xlabel("rows")
        axes.set_ylabel(panel.unit)
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize="small")
    drawn.tight_layout()
    _save(drawn, path)
