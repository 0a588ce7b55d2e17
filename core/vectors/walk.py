"""A walk over a graph among the rows that a filter allows, in the manner of ACORN.

FAISS lets rows that a selector refuses take up the breadth of a search, so that few allowed ones
are met. Here only allowed rows are candidates. Where too few of a node's links are allowed, the
links of those that are not are followed too (Patel et al. 2024, "ACORN"), and many nodes are
expanded at a time, as each step is a few calls of numpy.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.models import Metric
from core.vectors.arrays import Floats, Ints
from core.vectors.families import row_products

_SAMPLE: Final = 4096
"""Positions drawn at random, the allowed ones among which are where walks begin."""
_SEEDS: Final = 128
"""Allowed positions that a walk begins with."""
_SEEDS_BESIDE: Final = 16
"""The same where as many are known that are near."""
_BEAM: Final = 24
"""Nodes expanded in a step."""
_LINKS_MIN: Final = 12
"""With fewer allowed links, a node's other links are followed too."""
_SEED: Final = 23

Whole = TypeVar("Whole", np.int32, np.int64)
Mask = NDArray[np.bool_]
Test = Callable[[NDArray[np.integer[Any]]], Mask]
"""Which of these positions are allowed, in their shape; one of -1 may have any answer."""


class GraphWalk:
    """One graph with the rows at its positions. Never changed by a walk."""

    def __init__(
        self,
        links: tuple[NDArray[np.int32], NDArray[np.uint64], int],
        rows: Floats,
        order: NDArray[np.int32],
        metric: Metric,
    ) -> None:
        """Takes everything as it is: `links` as `graph_links` has them, the rest as `Searcher`."""
        self._links, self._starts, width = links
        self._columns = np.arange(width)
        self._rows = rows
        self._order = order
        self._metric: Metric = metric
        n = order.shape[0]
        self._sample: Ints = np.random.default_rng(_SEED).permutation(n)[:_SAMPLE]

    def nearest(
        self, query: Floats, breadth: int, share: float, allowed: Test, begin: Ints
    ) -> Ints:
        """The nearest allowed positions that the walk finds, nearest first: at most `breadth`.

        Args:
            query: float32 (d,), prepared.
            breadth: how many are kept on the way.
            share: of the positions that are allowed, over 0: the fewer, the more of the links
                that are not allowed are followed.
            allowed: which of these positions are.
            begin: allowed positions (any,) known to be near, where the walk begins too.
        """
        through = max(4, round(2 / share))
        visited = np.zeros(self._order.shape[0], dtype=np.bool_)
        seeds = _SEEDS_BESIDE if begin.shape[0] >= _SEEDS_BESIDE else _SEEDS
        new = self._sample[allowed(self._sample)][:seeds]
        if begin.size:
            new = _distinct(np.concatenate((begin, new)))
        visited[new] = True
        found, scores, expanded = new[:0], np.empty(0, dtype=np.float32), visited[:0]
        while True:
            new_scores = self._scores(query, new)
            if found.shape[0] >= breadth:
                better = new_scores > scores[-1]
                new, new_scores = new[better], new_scores[better]
            if new.size:
                # All that was found was kept in order, the new ones are not expanded yet.
                scores = np.concatenate((scores, new_scores))
                order = np.argsort(-scores, kind="stable")[:breadth]
                found = np.concatenate((found, new))[order]
                expanded = np.concatenate((expanded, np.zeros(new.shape[0], dtype=np.bool_)))[order]
                scores = scores[order]
            step = np.flatnonzero(~expanded)[:_BEAM]
            if not step.size:
                return found
            expanded[step] = True
            new = self._linked(found[step], through, allowed, visited)

    def _linked(self, nodes: Ints, through: int, allowed: Test, visited: Mask) -> Ints:
        """int64: allowed positions linked to these nodes that no walk was at; marks them."""
        near = self._neighbors(nodes)
        fresh = near >= 0
        fresh &= ~visited[near]
        marked = allowed(near)
        new = near[fresh & marked]
        poor = np.count_nonzero(marked, axis=1) < _LINKS_MIN
        if poor.any():
            others = fresh[poor] & ~marked[poor]
            others &= np.cumsum(others, axis=1) <= through
            via = _distinct(near[poor][others])
            visited[via] = True
            further = self._neighbors(via).ravel()
            further = further[further >= 0]
            further = further[~visited[further]]
            new = np.concatenate((new, further[allowed(further)]))
        found = _distinct(new).astype(np.int64)
        visited[found] = True
        return found

    def _neighbors(self, nodes: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """int32 (nodes, links): -1 where there are fewer."""
        starts = self._starts[nodes].astype(np.int64)
        near: NDArray[np.int32] = self._links[starts[:, None] + self._columns]
        return near

    def _scores(self, query: Floats, positions: Ints) -> Floats:
        numbers = self._order[positions].astype(np.int64)
        return row_products(query, self._rows, numbers, self._metric)


def _distinct(values: NDArray[Whole]) -> NDArray[Whole]:
    """Sorted, each once: less work than `np.unique`, which also handles what is not here."""
    values = np.sort(values)
    first = np.empty(values.shape[0], dtype=np.bool_)
    first[:1] = True
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]
