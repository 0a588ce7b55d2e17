"""Finding near copies: rows that are almost equal, as of a product embedded again with noise.

`copies` says what they are for. Each member is within the radius of its representative. A chain
a ~ b ~ c is no group unless a and c are near copies too.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.models import Metric
from core.vectors.arrays import Doubles, Floats, Ints, row_blocks

MEMBERS_MIN: Final = 16
"""Fewer near copies than this leave a graph node most of its 32 links, and stay separate rows."""
RADIUS_SHARES: Final = (1 / 40, 1 / 8)
"""The radius of a group as a share of `spread`: under cosine about 0.03 and 0.17, a similarity of
0.9995 and 0.985. The wider one is for where too many queries have a recall of 0 with the first."""
_PAIRS: Final = 4096
_USUAL: Final = 0.9
_PROJECTIONS: Final = 8
_CELL_RADII: Final = 8.0
"""Width of a cell in radii: a projection moves a near copy by about one radius."""
_ROUNDS: Final = 4
"""Grids with different offsets, as a group may lie across the border of two cells."""
_PASSES: Final = 16
"""Representatives that are tried in one cell and round."""
_SEED: Final = 7
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


def spread(rows: Floats, numbers: Ints, metric: Metric) -> float:
    """How far random pairs of these rows are apart; 0 for one row.

    The 90th percentile: it follows neither a few rows that are far away nor the near copies, unless
    19 in 20 rows are such. Under cosine no row is far away, and the root of the mean square is not
    small even then.

    Args:
        rows: float32 (n, d), prepared; may be mapped from a file.
        numbers: the rows that count (m,).
        metric: what a score is.
    """
    count = numbers.shape[0]
    if count <= 1:
        return 0.0
    random = np.random.default_rng(_SEED)
    one = random.integers(0, count, _PAIRS)
    other = (one + random.integers(1, count, _PAIRS)) % count
    apart = distances_between(rows, numbers[one], numbers[other])
    usual = float(np.quantile(apart, _USUAL))
    if metric != "cosine":
        return usual
    return max(usual, float(np.sqrt(np.vecdot(apart, apart) / _PAIRS)))


def representatives(rows: Floats, numbers: Ints, radius: float) -> Ints:
    """int64 (m,): the position of the representative of each of these rows, its own for most.

    Rows of one cell of a grid over random projections are compared, the first of them with the
    others, exactly. Some near copies may be missed, which shows in the recall; none is wrong.

    Args:
        rows: float32 (n, d), prepared; may be mapped from a file.
        numbers: row numbers (m,), ascending, of rows of which no two are equal.
        radius: largest distance of a member from its representative.
    """
    found = np.arange(numbers.shape[0])
    if radius <= 0 or numbers.shape[0] < MEMBERS_MIN:
        return found
    leads = np.zeros(numbers.shape[0], dtype=np.bool_)
    projected = _projected(rows, numbers, radius)
    for offset in np.random.default_rng(_SEED).random((_ROUNDS, _PROJECTIONS)):
        free = np.flatnonzero(found == np.arange(found.shape[0]))
        cells = _cells(projected[free], offset)
        order = np.lexsort((free, ~leads[free], cells))
        _group_cells(rows, numbers, radius, (cells[order], free[order]), found, leads)
    return found


def _projected(rows: Floats, numbers: Ints, radius: float) -> Floats:
    """float32 (m, projections), in widths of a cell."""
    directions = np.random.default_rng(_SEED).standard_normal((_PROJECTIONS, rows.shape[1]))
    result = np.empty((numbers.shape[0], _PROJECTIONS), dtype=np.float32)
    for block in row_blocks(numbers.shape[0], rows.shape[1]):
        exact = rows[numbers[block]].astype(np.float64)
        exact /= _CELL_RADII * radius
        for axis, direction in enumerate(directions):
            # Each row is summed by itself: neither other rows nor threads change the result.
            result[block, axis] = np.vecdot(exact, direction)
    return result


def _cells(projected: Floats, offset: Doubles) -> NDArray[np.uint64]:
    """uint64 (m,): equal for rows of one cell, and different for others but for rare collisions."""
    keys = np.zeros(projected.shape[0], dtype=np.uint64)
    for axis in range(_PROJECTIONS):
        cell = np.floor(projected[:, axis] + offset[axis])
        keys ^= cell.view(np.uint64)
        keys *= _MIX
        keys ^= keys >> np.uint64(29)
    return keys


def _group_cells(
    rows: Floats,
    numbers: Ints,
    radius: float,
    sorted_cells: tuple[NDArray[np.uint64], Ints],
    found: Ints,
    leads: NDArray[np.bool_],
) -> None:
    """Sets `found` and `leads` from rows sorted by cell, representatives first in each."""
    cells, members = sorted_cells
    for _ in range(_PASSES):
        starts = np.flatnonzero(np.concatenate(([True], cells[1:] != cells[:-1])))
        sizes = np.diff(starts, append=cells.shape[0])
        # A new representative needs enough members, an existing one takes any number.
        worth = np.where(leads[members[starts]], sizes > 1, sizes >= MEMBERS_MIN)
        stays = np.repeat(worth, sizes)
        cells, members = cells[stays], members[stays]
        if not cells.size:
            return
        sizes = sizes[worth]
        starts = np.cumsum(sizes) - sizes
        head = np.repeat(members[starts], sizes)
        close = distances_between(rows, numbers[members], numbers[head]) <= radius
        close &= ~leads[members]
        close[starts] = False
        joined = np.add.reduceat(close, starts, dtype=np.int64)
        enough = leads[members[starts]] | (joined + 1 >= MEMBERS_MIN)
        close &= np.repeat(enough, sizes)
        found[members[close]] = head[close]
        leads[head[close]] = True
        left = ~close
        left[starts] = False
        cells, members = cells[left], members[left]
        if not cells.size:
            return


def distances_between(rows: Floats, one: Ints, other: Ints) -> Doubles:
    """float64 (m,): how far the rows of each pair are apart, in steps of bounded memory."""
    result = np.empty(one.shape[0])
    for block in row_blocks(one.shape[0], rows.shape[1]):
        apart = rows[one[block]].astype(np.float64)
        apart -= rows[other[block]]
        result[block] = np.sqrt(np.vecdot(apart, apart))
    return result
