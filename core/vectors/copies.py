"""Rows that are equal, number by number: one product listed a hundred times.

Copies tie with each other in every search. In a graph they link to nothing but themselves, and hide
what is behind them: an index has one of them, and they come back together.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.vectors.arrays import Floats, Ints, row_blocks
from core.vectors.exact import best

_SEED: Final = 7


class Members(msgspec.Struct, frozen=True):
    """The rows behind each position of an index, where some have more than one."""

    starts: Ints
    """int64 (positions + 1,): where the rows of each position begin."""
    rows: NDArray[np.int32]
    """int32 (n,): row numbers, ascending within a position."""

    def expand(self, positions: Ints, scores: Floats) -> tuple[Ints, Floats]:
        """Every row behind these positions (any,), and the score of its position."""
        starts = self.starts[positions]
        sizes = self.starts[positions + 1] - starts
        before = np.cumsum(sizes) - sizes
        flat = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
        return self.rows[flat].astype(np.int64), np.repeat(scores, sizes)

    def all_of(self, positions: Ints, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool (any,): whether all rows of a position are marked; `marked` as `expand` has it."""
        sizes = self.starts[positions + 1] - self.starts[positions]
        if not sizes.size:
            return np.empty(0, dtype=np.bool_)
        every: NDArray[np.bool_] = np.logical_and.reduceat(marked, np.cumsum(sizes) - sizes)
        return every


class Groups:
    """Rows that are equal, number by number, as groups in the order of their first rows."""

    def __init__(self, rows: Floats) -> None:
        keys = _keys(rows)
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        group = group.reshape(-1)
        # Unequal rows of one key are next to impossible; such a row stands alone, which is right.
        odd = np.flatnonzero(~_equal(rows, first[group]))
        group[odd] = first.shape[0] + np.arange(odd.shape[0])
        first = np.concatenate((first, odd))
        rank = np.argsort(first, kind="stable")
        place = np.empty_like(rank)
        place[rank] = np.arange(rank.shape[0])
        self.first: Ints = first[rank]
        """The first row of each group, ascending."""
        self.of: Ints = place[group]
        """The group of each row."""
        self.trivial = self.first.shape[0] == rows.shape[0]
        """Whether no two rows are equal."""
        self._members: Ints = np.argsort(self.of, kind="stable")
        self._sizes: Ints = np.bincount(self.of, minlength=self.first.shape[0])
        self._starts: Ints = np.cumsum(self._sizes) - self._sizes

    def members(self, groups: Ints) -> Members:
        """The rows of these groups (any,), which become the positions of an index."""
        sizes = self._sizes[groups]
        starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        flat = np.arange(int(starts[-1])) + np.repeat(self._starts[groups] - starts[:-1], sizes)
        return Members(starts, self._members[flat].astype(np.int32))

    def expand(self, found: Ints, scores: Floats, k: int) -> tuple[Ints, Floats]:
        """The best k rows of each line of groups (m, c): every group has the score of its rows."""
        sizes = np.minimum(self._sizes[found], k)
        m = found.shape[0]
        flat = np.repeat(found.ravel(), sizes.ravel())
        line = np.repeat(np.arange(m), sizes.sum(axis=1))
        ends = np.cumsum(sizes.ravel())
        nth = np.arange(flat.shape[0]) - np.repeat(ends - sizes.ravel(), sizes.ravel())
        rows = np.full((m, int(sizes.sum(axis=1).max())), -1, dtype=np.int64)
        wide = np.full(rows.shape, -np.inf, dtype=np.float32)
        column = np.arange(flat.shape[0]) - np.repeat(
            np.cumsum(sizes.sum(axis=1)) - sizes.sum(axis=1), sizes.sum(axis=1)
        )
        rows[line, column] = self._members[self._starts[flat] + nth]
        wide[line, column] = np.repeat(scores.ravel(), sizes.ravel())
        return best(rows, wide, k)


def _keys(rows: Floats) -> NDArray[np.float64]:
    """float64 (n,): equal for equal rows, and all but surely not for others."""
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
