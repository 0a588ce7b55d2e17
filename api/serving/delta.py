"""Rows changed since a build: what they are now, what they hide in the index, exact search.

A `DeltaBuffer` is filled by the one task that reads changed rows. Each time it is, it gives a new
`DeltaSnapshot`, which never changes: a search works on the one that it began with.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from api.serving.segment import Segment
from api.wire.schemas import Neighbor
from core.models import Embedding
from core.vectors.arrays import (
    Floats,
    Ints,
    check_rows,
    prepare,
    prepare_one,
    scores,
    squared_norms,
)
from core.vectors.parameters import IndexInfo, Layout
from core.vectors.search import Exclusion, Searcher

UNCHANGED: Final = -1
"""In place of a slot: written again as the index has it."""
MASKED: Final = -2
"""Deleted, or no longer good: the index's row must not come back."""
ABSENT: Final = -3
"""The same, and the index never had it."""
_CHUNK_ROWS: Final = 256
_FEW_ROWS: Final = 64
"""Up to here each row is scored as it is: a scan by float32 products saves nothing."""
_ENTRY_BYTES: Final = 400
"""Of one id with its time and its place in a dict, about."""


Dead = NDArray[np.bool_]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A changed row, as the last consistent read found it."""

    updated_at: str
    slot: int
    """Where its vector is in the buffer, or `UNCHANGED`, `MASKED`, `ABSENT`."""


Entries = Mapping[str, Entry]


class DeltaSnapshot:
    """What a buffer had at one moment, to be searched beside the index."""

    __slots__ = ("_dead", "_ids", "_rows", "_searcher", "hidden", "live")

    def __init__(
        self, hidden: Exclusion | None, searcher: Searcher | None, ids: list[str], dead: Dead
    ) -> None:
        self.hidden = hidden
        """Rows of the index that must not come back; None where there are none."""
        self._searcher = searcher
        self._ids = ids
        self._rows = searcher.n if searcher else 0
        self._dead = searcher.exclusion(np.flatnonzero(dead)) if searcher and dead.any() else None
        self.live = self._rows - (self._dead.count if self._dead else 0)
        """Rows that are searched here."""

    @property
    def numbers(self) -> int:
        """How many numbers a search goes through."""
        return self._rows * self._searcher.d if self._searcher else 0

    def vector(self, slot: int) -> Floats:
        """float32 (d,), prepared."""
        if self._searcher is None:
            raise IndexError(slot)
        found: Floats = self._searcher.rows[slot]
        return found

    def search(
        self, vectors: Sequence[Floats], k: int, without: Sequence[int], min_score: float | None
    ) -> list[list[Neighbor]]:
        """The nearest rows of the buffer to each vector, by (-score, product id), all exact.

        Args:
            vectors: float32 (d,) each, checked.
            k: how many; fewer come back where there are fewer.
            without: slots that are not wanted.
            min_score: the least score that is wanted.
        """
        searcher = self._searcher
        if searcher is None:
            return [[] for _ in vectors]
        excluded = self._dead
        if without:
            slots = np.array(without, dtype=np.int64)
            excluded = excluded.plus(slots) if excluded else searcher.exclusion(slots)
        if len(vectors) == 1:
            return [self._nearest(vectors[0], None, k, excluded, min_score)]
        many, final = searcher.search(np.stack(vectors), k + 1, excluded=excluded)
        counts = np.count_nonzero(many >= 0, axis=1).tolist()
        return [
            self._nearest(vector, (near[:count], top[:count]), k, excluded, min_score)
            for vector, near, top, count in zip(vectors, many, final, counts, strict=True)
        ]

    def _nearest(
        self,
        vector: Floats,
        found: tuple[Ints, Floats] | None,
        k: int,
        excluded: Exclusion | None,
        min_score: float | None,
    ) -> list[Neighbor]:
        """The best k of one vector; `found` are its best k + 1 slots and scores, where known."""
        searcher = self._searcher
        if searcher is None:
            return []
        if found is None and searcher.n <= _FEW_ROWS:
            query = prepare_one(vector, searcher.metric)
            top = scores(query, searcher.rows, searcher.metric)
            if excluded is not None:
                excluded.blank(top)
            near = np.flatnonzero(top != -np.inf)
            near = near[np.argsort(-top[near])]
            return self._named(near, top[near], min_score)[:k]
        # One more than asked for tells whether rows of equal score are cut apart at k.
        want = k + 1
        near, top = found or searcher.search_one(vector, want, excluded=excluded)
        while near.shape[0] == want and top[-1] == top[k - 1]:
            want *= 2
            near, top = searcher.search_one(vector, want, excluded=excluded)
        return self._named(near, top, min_score)[:k]

    def _named(self, near: Ints, top: Floats, min_score: float | None) -> list[Neighbor]:
        """Hits of slots (any,) in descending order of their scores; ties by product id."""
        if min_score is not None:
            near = near[: np.count_nonzero(top >= np.float64(min_score))]
        ids = self._ids
        pairs = zip(near.tolist(), (top + 0).tolist(), strict=False)  # adding 0 makes 0 of -0
        hits = [Neighbor(ids[slot], score) for slot, score in pairs]
        hits.sort(key=_order)
        return hits


class DeltaBuffer:
    """The changed rows of one loaded version."""

    def __init__(self, index: Segment) -> None:
        self.index = index
        self.watermark = index.manifest.watermark
        self.entries: dict[str, Entry] = {}
        """Replaced at each change, never changed in place."""
        self.changed = 0
        """Products whose form in the index is not the present one."""
        self.full = False
        """Nothing is kept any more but which rows of the index were deleted."""
        self._ids: list[str] = []
        self._matrix = np.empty((0, index.dimension), dtype=np.float32)
        self._dead = np.zeros(0, dtype=np.bool_)
        self._hidden = np.zeros(index.rows, dtype=np.bool_)
        self._norm_max = 1.0

    @property
    def resident_bytes(self) -> int:
        """Memory that the buffer takes, about."""
        return self._matrix.nbytes + 2 * self._hidden.nbytes + _ENTRY_BYTES * len(self.entries)

    def differing(self, page: Sequence[Embedding]) -> list[str]:
        """The ids of rows, as the table's index shows them, that are not known here yet.

        Of a full buffer, those that were deleted, or are back.
        A row whose vector is the one in the index changes nothing, and most rows of a build that
        followed a large import are such. For use in any thread.
        """
        entries, full = self.entries, self.full
        unknown = [
            row
            for row in page
            if (entry := entries.get(row.product_id)) is None or entry.updated_at != row.updated_at
        ]
        vectors = self._prepared(unknown)
        found = []
        for row in unknown:
            at = self.index.row_of(row.product_id)
            slot = self._slot(at, vectors.get(row.product_id))
            if full:
                differs = at is not None and bool(self._hidden[at]) != (slot == MASKED)
            else:
                # One that was deleted, and that the index never had, is as it was.
                differs = row.product_id in entries or slot not in {UNCHANGED, ABSENT}
            if differs:
                found.append(row.product_id)
        return found

    def apply(self, found: Mapping[str, Embedding | None]) -> None:
        """Takes rows as a consistent read found them; None: the table has no such row.

        The last one applied wins, whatever its time says: clocks differ, and reads are made one
        after the other. A row that no index could take counts as deleted.
        """
        vectors = self._prepared([row for row in found.values() if row is not None])
        entries = self.entries.copy()
        for product_id, row in found.items():
            before = entries.get(product_id)
            moment = row.updated_at if row else before.updated_at if before else ""
            self._place(entries, product_id, moment, vectors.get(product_id))
        self._finish(entries)

    def carry(self, older: "DeltaBuffer", product_ids: Sequence[str]) -> None:
        """Takes over what an older version's buffer knows and this version may not have."""
        entries = self.entries.copy()
        for product_id in product_ids:
            entry = older.entries.get(product_id)
            if entry is None or product_id in entries or entry.updated_at <= self.watermark:
                continue
            self._place(entries, product_id, entry.updated_at, older.vector(product_id))
        self._finish(entries)

    def give_up(self) -> None:
        """Drops all but a byte a row of the index: what was deleted stays hidden.

        What was overwritten is found in its old form again: a registry that is written anew would
        otherwise be gone from the answers until its build is done.
        """
        deleted = [
            row
            for product_id, entry in self.entries.items()
            if entry.slot == MASKED and (row := self.index.row_of(product_id)) is not None
        ]
        self._hidden = np.zeros(self.index.rows, dtype=np.bool_)
        self._hidden[deleted] = True
        self.full = True
        self.entries = {}
        self.changed = 0
        self._ids = []
        self._matrix = np.empty((0, self.index.dimension), dtype=np.float32)
        self._dead = np.zeros(0, dtype=np.bool_)

    def forget(self, before: str) -> None:
        """Drops entries of earlier changes that have no effect: the table's index shows them."""
        self.entries = {
            product_id: entry
            for product_id, entry in self.entries.items()
            if entry.slot >= 0 or entry.slot == MASKED or entry.updated_at >= before
        }

    def vector(self, product_id: str) -> Floats | None:
        """float32 (d,) of a row known here, prepared; None where it is deleted."""
        entry = self.entries[product_id]
        if entry.slot >= 0:
            found: Floats = self._matrix[entry.slot]
            return found
        row = self.index.row_of(product_id) if entry.slot == UNCHANGED else None
        return None if row is None else self.index.vector(row)

    def delta(self) -> DeltaSnapshot | None:
        """All that changes an answer now; None where nothing does."""
        used = len(self._ids)
        hidden = np.flatnonzero(self._hidden)
        if not used and not hidden.size:
            return None
        index = self.index
        info = IndexInfo(
            family="exact",
            why="changed since the build",
            layout=Layout(index.dimension, index.metric),
            bytes=0,
            build={},
            norm_max=self._norm_max,
        )
        return DeltaSnapshot(
            Exclusion(index.rows, hidden) if hidden.size else None,
            Searcher(self._matrix[:used], index.metric, info) if used else None,
            self._ids,
            self._dead[:used],
        )

    def _prepared(self, rows: Sequence[Embedding]) -> dict[str, Floats]:
        """Vectors by product id, of those rows that an index could take."""
        size = 4 * self.index.dimension
        fitting = [row for row in rows if row.vector is not None and len(row.vector) == size]
        data = b"".join(row.vector or b"" for row in fitting)
        vectors = np.frombuffer(data, dtype="<f4").reshape(len(fitting), self.index.dimension)
        vectors = vectors.astype(np.float32, copy=False)
        good = check_rows(vectors, self.index.metric) == 0
        vectors = prepare(vectors[good], self.index.metric)
        ids = [row.product_id for row, fine in zip(fitting, good.tolist(), strict=True) if fine]
        return dict(zip(ids, vectors, strict=True))

    def _place(
        self, entries: dict[str, Entry], product_id: str, moment: str, vector: Floats | None
    ) -> None:
        row = self.index.row_of(product_id)
        slot = self._slot(row, vector)
        if row is not None:
            self._hidden[row] = slot == MASKED if self.full else slot != UNCHANGED
        if self.full:
            return
        before = entries.pop(product_id, None)
        if before is not None and before.slot >= 0:
            self._dead[before.slot] = True
        self.changed -= before is not None and before.slot not in {UNCHANGED, ABSENT}
        if slot >= 0 and vector is not None:
            self._append(product_id, vector)
        effect = slot not in {UNCHANGED, ABSENT}
        self.changed += effect
        # What the index has from before its watermark needs no remembering.
        if effect or moment > self.watermark:
            entries[product_id] = Entry(moment, slot)

    def _slot(self, row: int | None, vector: Floats | None) -> int:
        if vector is None:
            return ABSENT if row is None else MASKED
        if row is not None and np.array_equal(self.index.vector(row), vector):
            return UNCHANGED
        return len(self._ids)

    def _append(self, product_id: str, vector: Floats) -> None:
        used, capacity = len(self._ids), self._matrix.shape[0]
        if used == capacity:
            # The arrays that snapshots look at stay as they are.
            grown = max(_CHUNK_ROWS, capacity + capacity // 2)
            matrix = np.empty((grown, self.index.dimension), dtype=np.float32)
            matrix[:used] = self._matrix
            self._matrix = matrix
            self._dead = np.concatenate((self._dead, np.zeros(grown - capacity, dtype=np.bool_)))
        self._matrix[used] = vector
        self._ids.append(product_id)
        if self.index.metric != "cosine":
            norm = float(np.sqrt(squared_norms(vector[None])[0]))
            self._norm_max = max(self._norm_max, norm)

    def _finish(self, entries: dict[str, Entry]) -> None:
        used = len(self._ids)
        dead = self._dead[:used]
        if used >= _CHUNK_ROWS and 2 * np.count_nonzero(dead) > used:
            kept = np.flatnonzero(~dead)
            self._matrix = self._matrix[kept]
            self._ids = [self._ids[slot] for slot in kept.tolist()]
            self._dead = np.zeros(kept.shape[0], dtype=np.bool_)
            for slot, product_id in enumerate(self._ids):
                entries[product_id] = Entry(entries[product_id].updated_at, slot)
        self.entries = entries


def merged(index: list[Neighbor], fresh: list[Neighbor], k: int) -> list[Neighbor]:
    """The best k of both, by (-score, product id): the order that one index would give."""
    if not fresh:
        return index
    both = index + fresh
    both.sort(key=_order)
    return both[:k]


def _order(hit: Neighbor) -> tuple[float, str]:
    # Text compares by code point, which is the order of its UTF-8: that of an index's rows.
    return -hit.score, hit.product_id
