"""What `tests.benchmarks.scaling` measured at several numbers of rows, as tables and plots."""

from collections.abc import Sequence
from typing import Final

import msgspec

from tests.benchmarks.figures import Figure, number
from tests.benchmarks.machine import Machine, describe
from tests.benchmarks.plots import Panel, Point

PANELS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "Throughput, one core": (
        "a second",
        {
            "K9, a vector in JSON": "json: searches",
            "K9, a vector in msgpack": "msgpack: searches",
            "K9, 256 vectors a request": "many: searches",
            "K9, neighbours": "neighbors: requests",
            "raw FAISS, one by one": "raw FAISS: searches",
            "raw FAISS, 256 at a time": "raw FAISS in batches: searches",
        },
    ),
    "99th percentile, 16 connections": (
        "ms",
        {
            "K9, a vector in JSON": "json: p99",
            "K9, a vector in msgpack": "msgpack: p99",
            "K9, neighbours": "neighbors: p99",
        },
    ),
    "Build by stage": (
        "s",
        {
            "all stages": "build, all stages",
            "index": "build stage index",
            "recall": "build stage recall",
            "matrix": "build stage matrix",
            "raw FAISS: train, tune, add": "raw FAISS index",
            "raw FAISS: knn": "raw FAISS matrix",
        },
    ),
    "Pull of canned pages, one core": (
        "rows a second",
        {"K9": "pull by k9", "the stock client": "pull by stock"},
    ),
    "Start to first answer": (
        "s",
        {"answered": "start: answered", "listening": "start: listening"},
    ),
    "Memory": (
        "MB",
        {
            "API, all": "API: memory",
            "of that the version's files": "API: memory of the version",
            "build, peak": "build, peak memory",
            "FAISS index": "index: size",
            "FAISS index, small budget": "small budget: index",
        },
    ),
    "Recall@10": ("", {"API": "API: recall@10", "small budget": "small budget: recall@10"}),
    "A search in process, one thread": (
        "µs",
        {
            "K9, small budget": "small budget: K9, a search",
            "raw FAISS, small budget": "small budget: FAISS, a search",
        },
    ),
}
"""Title of a panel → its unit, and the figure of each of its lines."""

_MADE: Final = (
    "The first {rows:,} rows are real. Those above are copies of them: each copy is turned by a "
    "small rotation of its own, and each of its rows moved by noise of its own "
    "(`tests/benchmarks/grown.py`). Medians, with the lowest and the highest turn."
)


class Part(msgspec.Struct, frozen=True):
    """One part of what is measured at one number of rows."""

    name: str
    rows: int
    figures: list[Figure]
    notes: dict[str, str]
    """What is no number, as the family of an index."""
    began_at: str
    seconds: float
    load_before: float
    load_after: float
    """Processes that ran or waited for a core, on average over a minute."""
    machine: Machine
    commit: str


def panels(parts: Sequence[Part]) -> list[Panel]:
    """Those for which something was measured."""
    found = []
    for title, (unit, lines) in PANELS.items():
        points = {line: points_of(parts, figure) for line, figure in lines.items()}
        if any(points.values()):
            found.append(Panel(title, unit, {line: p for line, p in points.items() if p}))
    return found


def points_of(parts: Sequence[Part], name: str) -> list[Point]:
    """A figure at each number of rows, in ascending order; 0 has no place on the axis."""
    return [
        Point(part.rows, figure.median, min(figure.values), max(figure.values))
        for part in sorted(parts, key=lambda part: part.rows)
        for figure in part.figures
        if figure.name == name and min(figure.values) > 0
    ]


def markdown(parts: Sequence[Part], real_rows: int) -> str:
    """A table with a column for each number of rows."""
    sizes = sorted({part.rows for part in parts})
    lines = ["# Speed as the rows grow", "", _MADE.format(rows=real_rows), ""]
    head = " | ".join(f"{size:,} rows" for size in sizes)
    lines += [f"| figure | {head} |", f"|---|{'---:|' * len(sizes)}"]
    names = dict.fromkeys(name for part in parts for name in (*part.notes, *_units(part)))
    for name in names:
        cells = " | ".join(_cell(parts, size, name) for size in sizes)
        lines.append(f"| {name} | {cells} |")
    lines += ["", "| part | rows | began | seconds | load before, after | commit |"]
    lines += ["|---|---:|---|---:|---|---|"]
    lines += [
        f"| {part.name} | {part.rows:,} | {part.began_at} | {part.seconds:,.0f} | "
        f"{part.load_before:.2f}, {part.load_after:.2f} | {part.commit} |"
        for part in sorted(parts, key=lambda part: (part.rows, part.name))
    ]
    machines = dict.fromkeys(text for part in parts for text in describe(part.machine))
    lines += ["", *(f"- {text}" for text in machines), ""]
    return "\n".join(lines)


def _units(part: Part) -> dict[str, str]:
    return {figure.name: figure.unit for figure in part.figures}


def _cell(parts: Sequence[Part], rows: int, name: str) -> str:
    for part in parts:
        if part.rows != rows:
            continue
        if name in part.notes:
            return part.notes[name]
        for figure in part.figures:
            if figure.name == name:
                spread = f" ({figure.range})" if len(figure.values) > 1 else ""
                return f"{number(figure.median)} {figure.unit}".strip() + spread
    return ""
