"""Copies and near copies: rows that are equal, or almost, as of a product listed a hundred times.

In a graph they link only to each other, and hide the rows behind them. So an index has one row of
each group, its representative, and a search expands it: equal rows have its score, near copies are
scored one by one.
"""

import math
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.models import Metric
from core.vectors.arrays import Floats, Ints, Query, row_blocks, row_scores
from core.vectors.exact import top_k_per_query
from core.vectors.near_copies import distances_between, representatives, spread

_SEED: Final = 7
_ROUNDING: Final = 1e-6
"""Relative, above the error of two float32 scores, so that a bound of a score is never violated."""


class Members(msgspec.Struct, frozen=True):
    """The rows that each position of an index stands for, where some stand for several."""

    starts: Ints
    """int64 (positions + 1,): where the rows of each position begin."""
    rows: NDArray[np.int32]
    """int32 (n,): row numbers, ascending within a position."""
    radii: Floats | None = None
    """float32 (positions,): the largest distance of one of its rows from the one in the index, 0
    where all are equal; None where they are equal at all positions."""

    def first(self, positions: int) -> "Members":
        """Those of the first so many positions."""
        radii = None if self.radii is None else self.radii[:positions]
        starts = self.starts[: positions + 1]
        return Members(starts, self.rows[: starts[-1]], radii)

    def expand(self, positions: Ints) -> tuple[Ints, Ints]:
        """All rows of these positions (any,), and the index of the position of each."""
        starts = self.starts[positions]
        sizes = self.starts[positions + 1] - starts
        before = np.cumsum(sizes) - sizes
        flat = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
        return self.rows[flat].astype(np.int64), np.repeat(np.arange(sizes.shape[0]), sizes)

    def score(
        self,
        query: Query,
        positions: Ints,
        found: Floats,
        k: int,
        rows: Floats,
        excluded: Callable[[Ints], NDArray[np.bool_]] | None = None,
    ) -> tuple[Ints, Floats]:
        """The rows of these positions that may be among the best k, and their final scores.

        Args:
            query: prepared.
            positions: of the index (any,).
            found: the final score of the row in the index, for each position.
            k: the number of results.
            rows: float32 (n, d), prepared.
            excluded: which of these rows are left out.
        """
        numbers, owners = self.expand(positions)
        if excluded is not None:
            remains = ~excluded(numbers)
            numbers, owners = numbers[remains], owners[remains]
        if self.radii is None:
            return numbers, found[owners]
        radii = self.radii[positions]
        low, high = _bounds(query, found, radii)
        if numbers.shape[0] > k:
            least = low[owners]
            bound = np.partition(least, least.shape[0] - k)[least.shape[0] - k]
            remains = high[owners] >= bound
            numbers, owners = numbers[remains], owners[remains]
        result = found[owners]
        own = np.flatnonzero(radii[owners] > 0)
        if own.size:
            result[own] = row_scores(query, rows[numbers[own]])
        return numbers, result

    def all_marked(self, positions: Ints, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool (any,): whether all rows of a position are marked; `marked` as `expand` has it."""
        sizes = self.starts[positions + 1] - self.starts[positions]
        if not sizes.size:
            return np.empty(0, dtype=np.bool_)
        every: NDArray[np.bool_] = np.logical_and.reduceat(marked, np.cumsum(sizes) - sizes)
        return every


def _bounds(query: Query, found: Floats, radii: Floats) -> tuple[Floats, Floats]:
    """Least and greatest score of any row within a radius of one that has such a score (any,)."""
    if query.metric == "l2":
        apart = np.sqrt(np.maximum(-found, 0.0, dtype=np.float64))
        margin = radii * (1.0 + _ROUNDING) + _ROUNDING * apart
        low, high = -((apart + margin) ** 2), -(np.maximum(apart - margin, 0.0) ** 2)
    else:
        reach = 1.0 if query.metric == "cosine" else math.sqrt(query.square)
        margin = radii * (reach * (1.0 + _ROUNDING)) + _ROUNDING * np.abs(found)
        low, high = found - margin, found + margin
    equal = radii == 0
    return np.where(equal, found, low), np.where(equal, found, high)


class Groups:
    """A partition of rows, each group with one row that represents it, in order of those."""

    def __init__(self, first: Ints, of: Ints, radii: Floats | None = None) -> None:
        """Groups by their representatives (groups,) and the group of each row (n,)."""
        rank = np.argsort(first, kind="stable")
        position = np.empty_like(rank)
        position[rank] = np.arange(rank.shape[0])
        self.first: Ints = first[rank]
        """The representative of each group, ascending: of equal rows the first."""
        self.of: Ints = position[of]
        """The group of each row."""
        self.radii = None if radii is None else radii[rank]
        """float32 (groups,), as `Members` has it."""
        self.trivial = self.first.shape[0] == of.shape[0]
        """Whether every row is a group of its own."""
        self._members: Ints = np.argsort(self.of, kind="stable")
        self.sizes: Ints = np.bincount(self.of, minlength=self.first.shape[0])
        """Rows of each group."""
        self._starts: Ints = np.cumsum(self.sizes) - self.sizes
        sizes = self.sizes[:0] if self.radii is None else self.sizes[self.radii > 0]
        self.near_copies = int((sizes - 1).sum())
        """Rows that are almost equal to the one that represents them."""
        self.near_copies_max = int(sizes.max(initial=0))
        """Rows of the largest group of such."""

    def merge(self, rows: Floats, leaders: Ints) -> "Groups":
        """These groups, each merged into the group whose position `leaders` has for it.

        Args:
            rows: float32 (n, d), those of the groups.
            leaders: int64 (groups,), a group's own position where it remains.
        """
        kept = np.flatnonzero(leaders == np.arange(leaders.shape[0]))
        position = np.empty_like(leaders)
        position[kept] = np.arange(kept.shape[0])
        of = position[leaders]
        moved = np.flatnonzero(leaders != np.arange(leaders.shape[0]))
        apart = distances_between(rows, self.first[moved], self.first[leaders[moved]])
        radii = np.zeros(kept.shape[0], dtype=np.float32)
        # Rounded up: a radius that is too small would rule out true neighbours.
        np.maximum.at(radii, of[moved], np.nextafter(apart.astype(np.float32), np.float32(np.inf)))
        return Groups(self.first[kept], of[self.of], radii)

    def members(self, groups: Ints) -> Members:
        """The rows of these groups (any,), which become the positions of an index."""
        sizes = self.sizes[groups]
        starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        flat = np.arange(int(starts[-1])) + np.repeat(self._starts[groups] - starts[:-1], sizes)
        radii = None if self.radii is None else self.radii[groups]
        return Members(starts, self._members[flat].astype(np.int32), radii)

    def expand(self, found: Ints, scores: Floats, k: int) -> tuple[Ints, Floats]:
        """The best k rows of each line of groups (m, c): every group has the score of its rows."""
        sizes = np.minimum(self.sizes[found], k)
        widths = sizes.sum(axis=1)
        m = found.shape[0]
        flat = np.repeat(found.ravel(), sizes.ravel())
        line = np.repeat(np.arange(m), widths)
        ends = np.cumsum(sizes.ravel())
        nth = np.arange(flat.shape[0]) - np.repeat(ends - sizes.ravel(), sizes.ravel())
        rows = np.full((m, int(widths.max())), -1, dtype=np.int64)
        wide = np.full(rows.shape, -np.inf, dtype=np.float32)
        column = np.arange(flat.shape[0]) - np.repeat(np.cumsum(widths) - widths, widths)
        rows[line, column] = self._members[self._starts[flat] + nth]
        wide[line, column] = np.repeat(scores.ravel(), sizes.ravel())
        return top_k_per_query(rows, wide, k)


def equal_rows(rows: Floats) -> Groups:
    """Rows (n, d) that are equal, number by number, as groups in the order of their first rows."""
    keys = _keys(rows)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    # Unequal rows with one key are nearly impossible; such a row becomes a group of its own.
    odd = np.flatnonzero(~_equal(rows, first[group]))
    group[odd] = first.shape[0] + np.arange(odd.shape[0])
    return Groups(np.concatenate((first, odd)), group)


def similar_rows(rows: Floats, metric: Metric, radius_share: float) -> Groups:
    """The same, with near copies in the group of their representative.

    Near copies are within that share of the usual distance of two rows.
    """
    groups = equal_rows(rows)
    radius = radius_share * spread(rows, groups.first, metric)
    leaders = representatives(rows, groups.first, radius)
    alone = bool((leaders == np.arange(leaders.shape[0])).all())
    return groups if alone else groups.merge(rows, leaders)


def _keys(rows: Floats) -> NDArray[np.float64]:
    """float64 (n,): equal for equal rows, and different for others but for rare collisions."""
    weights = np.random.default_rng(_SEED).standard_normal(rows.shape[1])
    keys = np.empty(rows.shape[0])
    for block in row_blocks(*rows.shape):
        keys[block] = np.vecdot(rows[block].astype(np.float64), weights)
    return keys


def _equal(rows: Floats, others: Ints) -> NDArray[np.bool_]:
    result = np.empty(rows.shape[0], dtype=np.bool_)
    for block in row_blocks(*rows.shape):
        result[block] = (rows[block] == rows[others[block]]).all(axis=1)
    return result
