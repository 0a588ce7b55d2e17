"""What a version changes against the one before it: whose neighbours are others now.

Only products that both versions have are compared, and of their neighbours only those that both
have: a catalogue that grows pushes neighbours off a list of k without any of them being wrong.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.models import Progress, ProgressCallback
from core.vectors.arrays import Doubles, Ints, row_blocks

NAMED_MAX: Final = 20
"""Products named in each list of a manifest."""


class ProductChange(msgspec.Struct, frozen=True):
    """One product whose neighbours are others now."""

    product_id: str
    overlap: float
    """Share of its neighbours that it keeps, 0 to 1."""


class Changes(msgspec.Struct, frozen=True):
    """A version against the one that was current when it was built."""

    build_id: str
    """Of the one before."""
    common: int
    """Products that both have."""
    added: int
    removed: int
    k: int
    """Neighbours a product that were compared at the most."""
    compared: int
    """Products with a neighbour to compare."""
    overlap: float | None
    """Mean over them of the share of neighbours kept; 0 where no product is common, None where
    some are and none of them has a neighbour to compare."""
    most_changed: tuple[ProductChange, ...] = ()
    """Those that keep least, up to 20."""
    added_ids: tuple[str, ...] = ()
    """The first 20 by id."""
    removed_ids: tuple[str, ...] = ()

    @property
    def kept(self) -> float:
        """Share of the version before that is still answered, 0 to 1: a product gone keeps none.

        `overlap` alone would pass a version of a few products that happen to be alike. Where no
        neighbours can be compared, the products that are left speak for themselves.
        """
        before = self.common + self.removed
        left = self.common / before if before else 1.0
        return left if self.overlap is None else left * self.overlap


def changes(
    before: tuple[str, Sequence[bytes], NDArray[np.int32]],
    ids: Sequence[bytes],
    neighbors: NDArray[np.int32],
    progress: ProgressCallback,
) -> Changes:
    """Compares two versions.

    Args:
        before: Build id, ids and neighbours of the version before.
        ids: Ascending, n of them.
        neighbors: (n, k) row numbers, best first, -1 where there are fewer than k.
        progress: Called with the stage `compare`.
    """
    build_id, ids_before, neighbors_before = before
    row_of = {product_id: row for row, product_id in enumerate(ids)}
    rows = np.fromiter(
        (row_of.get(product_id, -1) for product_id in ids_before),
        dtype=np.int64,
        count=len(ids_before),
    )
    old = np.flatnonzero(rows >= 0)
    common = rows[old]
    known = np.zeros(len(ids), dtype=np.bool_)
    known[common] = True
    overlaps = np.full(old.shape[0], np.nan)
    width = neighbors.shape[1] + neighbors_before.shape[1]
    for block in row_blocks(old.shape[0], width):
        now = neighbors[common[block]].astype(np.int64)
        then = neighbors_before[old[block]].astype(np.int64)
        now = np.where((now >= 0) & known[now], now, -1)
        then = np.where(then >= 0, rows[then], -1)
        overlaps[block] = _overlaps(now, then)
        progress(Progress("compare", block.stop, old.shape[0]))
    compared = np.flatnonzero(~np.isnan(overlaps))
    mean = float(overlaps[compared].mean()) if compared.size else None
    changed = compared[overlaps[compared] < 1.0]
    worst = changed[np.argsort(overlaps[changed], kind="stable")[:NAMED_MAX]]
    gone, new = np.flatnonzero(rows < 0), np.flatnonzero(~known)
    return Changes(
        build_id=build_id,
        common=int(old.shape[0]),
        added=int(new.shape[0]),
        removed=int(gone.shape[0]),
        k=min(neighbors.shape[1], neighbors_before.shape[1]),
        compared=int(compared.shape[0]),
        overlap=mean if old.size else 0.0,
        most_changed=tuple(
            ProductChange(ids[int(common[at])].decode(), round(float(overlaps[at]), 4))
            for at in worst
        ),
        added_ids=_named(ids, new),
        removed_ids=_named(ids_before, gone),
    )


def unchanged(build_id: str, neighbors: NDArray[np.int32]) -> Changes:
    """What `changes` finds of a version whose rows are those of the one before."""
    rows, k = neighbors.shape
    compared = int(np.count_nonzero((neighbors >= 0).any(axis=1)))
    return Changes(
        build_id=build_id,
        common=rows,
        added=0,
        removed=0,
        k=k,
        compared=compared,
        overlap=1.0 if compared else None,
    )


def _overlaps(now: Ints, then: Ints) -> Doubles:
    """The share kept of each line's neighbours; NaN where a line has none that both know."""
    now, then = _packed(now), _packed(then)
    there = np.minimum((now >= 0).sum(axis=1), (then >= 0).sum(axis=1))
    for lines in (now, then):  # of equal length, so that nothing is missed for being further down
        lines[np.arange(lines.shape[1]) >= there[:, None]] = -1
    both = np.sort(np.concatenate((now, then), axis=1), axis=1)
    same = ((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)).sum(axis=1)
    return np.where(there > 0, same / np.maximum(there, 1), np.nan)


def _packed(lines: Ints) -> Ints:
    """Each line's own order, less the gaps: what is -1 goes to the end."""
    order = np.argsort(lines < 0, axis=1, kind="stable")
    return np.take_along_axis(lines, order, axis=1)


def _named(ids: Sequence[bytes], rows: Ints) -> tuple[str, ...]:
    return tuple(ids[int(row)].decode() for row in rows[:NAMED_MAX])
