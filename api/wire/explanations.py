"""How an answer was found, for operators."""

from typing import Literal

import msgspec


class ExplainedSearch(msgspec.Struct, frozen=True):
    """One of the searches that an answer was made of."""

    plan: Literal["all", "scan", "past", "walk"]
    """`all`: the index, of all products. `scan`: each of them is scored. `past`: the index is asked
    for more than are needed. `walk`: the graph is walked among products that match."""
    rows: int
    """Products that could be found: those that match."""
    k: int
    """How many were asked for."""
    breadth: int
    """Of the search of the index; 0 for a scan."""
    candidates: int
    """Products of the index scored by their vectors, as planned."""
    milliseconds: float


class ExplainedStep(msgspec.Struct, frozen=True):
    """A part of the work, waiting for its turn included."""

    name: Literal["filter", "search", "fields"]
    milliseconds: float


class Explained(msgspec.Struct, frozen=True):
    """How an answer was found."""

    rows: int
    """Products there are."""
    matched: int
    """Those that match the filter."""
    searches: list[ExplainedSearch]
    steps: list[ExplainedStep]
