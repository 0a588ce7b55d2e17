"""Rows changed since a build: their present vectors, what they mask in the index, exact search.

A `DeltaBuffer` is filled by the one task that reads changed rows. After each change it gives a new
`DeltaSnapshot`, which never changes: a search uses the one that it began with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from api.serving.attributes import AttributeBuffer, AttributeSnapshot
from api.serving.segment import Hits, Segment
from core.attributes.appended_columns import GrowingArray
from core.attributes.selection import Mask
from core.models import Embedding
from core.vectors.arrays import (
    Floats,
    Ints,
    check_rows,
    prepare,
    prepare_one,
    row_scores,
    squared_norms,
)
from core.vectors.parameters import IndexInfo, Layout
from core.vectors.search import Exclusion, Searcher

UNCHANGED: Final = -1
"""In place of a delta row: written again with the vector that the segment has."""
MASKED: Final = -2
"""Deleted, or not valid any more: the segment's row must not be found."""
ABSENT: Final = -3
"""The same, and the segment never had it."""
_CHUNK_ROWS: Final = 256
_FEW_ROWS: Final = 64
"""Up to here each row is scored as it is: a scan by float32 products saves nothing."""
_LOWEST: Final = float(np.finfo(np.float32).min)
"""No score is less; a row that is left out has -inf."""
_ENTRY_BYTES: Final = 400
"""Of one id with its time and its entry in a dict, about."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A changed row, as the last consistent read found it."""

    updated_at: str
    row: int
    """Its row in the delta, or `UNCHANGED`, `MASKED`, `ABSENT`."""


@dataclass(frozen=True, slots=True)
class DeltaSnapshot:
    """A delta at one moment, to be searched together with its segment."""

    entries: Mapping[str, Entry]
    """Every row that was read since the build, by product id."""
    changed: int
    """Products whose vector in the segment is not the present one."""
    masked: Exclusion | None
    """Rows of the segment that must not be found; None where there are none."""
    _searcher: Searcher | None
    _ids: Sequence[str]
    superseded: Exclusion | None
    """Rows of the delta that were overwritten or deleted since; None where there are none."""
    attributes: AttributeSnapshot
    _slots: NDArray[np.int32]
    """The slot of each row's product among the attributes."""

    @property
    def rows(self) -> int:
        """Rows that a search scores, the superseded ones among them."""
        return self._searcher.n if self._searcher else 0

    @property
    def has_effect(self) -> bool:
        """Whether answers differ from those of the segment alone."""
        return self.masked is not None or self.rows > 0

    def marked(self, products: Mask) -> Mask:
        """Bool (rows,): the rows whose product is marked in bool (slots,)."""
        rows: Mask = products[self._slots]
        if self.superseded is not None:
            self.superseded.clear(rows)
        return rows

    def product_id(self, row: int) -> str:
        """The product of a row."""
        return self._ids[row]

    def vector(self, row: int) -> Floats:
        """float32 (d,), prepared.

        Raises:
            IndexError: there is no such row.
        """
        if self._searcher is None:
            raise IndexError(row)
        found: Floats = self._searcher.rows[row]
        return found

    def merged(
        self,
        vectors: Sequence[Floats],
        hits: Sequence[Hits],
        k: int,
        *,
        excluded: Exclusion | None = None,
        min_score: float | None = None,
    ) -> list[Hits]:
        """The best k of each vector's hits and of the rows of the delta, scored exactly.

        `hits` is what the segment has found for each; `excluded` has the superseded rows too. The
        rest is as in `Snapshot.search`.
        """
        searcher = self._searcher
        if searcher is None:
            return list(hits)
        least = _LOWEST if min_score is None else max(min_score, _LOWEST)
        # A row below the last of k hits cannot become a result.
        floors = [max(least, each.scores[-1]) if len(each.scores) == k else least for each in hits]
        if len(vectors) == 1:
            return [self._merged_one(searcher, vectors[0], hits[0], k, floors[0], excluded)]
        # One more than asked for tells whether rows of equal score are cut apart at k.
        found = searcher.search(np.stack(vectors), k + 1, excluded=excluded)
        result = []
        for vector, old, floor, rows, top in zip(vectors, hits, floors, *found, strict=True):
            if rows[k] >= 0 and top[k] == top[k - 1]:
                result.append(self._merged_one(searcher, vector, old, k, floor, excluded))
            else:
                count = int(np.count_nonzero(top >= np.float64(floor)))
                result.append(self._ranked(old, rows[:count], top[:count], k))
        return result

    def _merged_one(
        self,
        searcher: Searcher,
        vector: Floats,
        hits: Hits,
        k: int,
        floor: float,
        excluded: Exclusion | None,
    ) -> Hits:
        if searcher.n <= _FEW_ROWS:
            query = prepare_one(vector, searcher.metric)
            top = row_scores(query, searcher.rows)
            if excluded is not None:
                excluded.mask(top)
            rows = np.flatnonzero(top >= np.float64(floor))
            return self._ranked(hits, rows, top[rows], k)
        count = k + 1
        while True:  # until no row that ties with the last one is left out
            rows, top = searcher.search_one(vector, count, excluded=excluded)
            if rows.shape[0] < count or top[-1] != top[k - 1]:
                reached = int(np.count_nonzero(top >= np.float64(floor)))
                return self._ranked(hits, rows[:reached], top[:reached], k)
            count *= 2

    def _ranked(self, hits: Hits, rows: Ints, top: Floats, k: int) -> Hits:
        """The best k of hits and rows, by (-score, product id).

        Text compares by code point, which is the order of its UTF-8, and so that of index rows.
        """
        if not rows.shape[0]:
            return hits
        ids = (*hits.product_ids, *(self._ids[row] for row in rows.tolist()))
        scores = (*(-score for score in hits.scores), *(-top).tolist())
        best = sorted(zip(scores, ids, strict=True))[:k]
        return Hits([product_id for _, product_id in best], [0.0 - score for score, _ in best])


class DeltaBuffer:
    """The changed rows of one segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.watermark = segment.manifest.watermark
        self.entries: dict[str, Entry] = {}
        """Replaced at each change, never changed in place."""
        self.changed = 0
        """Products whose vector in the segment is not the present one."""
        self.polled_at = ""
        """When the last complete poll of the shards began; empty before the first one."""
        self.complete_until = 0.0
        """By the event loop's clock: from then on that poll is too old to tell what changed."""
        self.overflowed = False
        """Too much changed: only deletions of the segment's rows are applied."""
        self.attributes = AttributeBuffer(segment)
        self._masked = np.zeros(segment.rows, dtype=np.bool_)
        self._clear()

    def _clear(self) -> None:
        self._ids: list[str] = []
        self._vectors = np.empty((0, self.segment.dimension), dtype=np.float32)
        self._superseded = np.zeros(0, dtype=np.bool_)
        self._slots = GrowingArray(np.int32)
        self._norm_max = 1.0

    @property
    def resident_bytes(self) -> int:
        """Memory that the buffer takes, about."""
        own = self._vectors.nbytes + 2 * self._masked.nbytes + _ENTRY_BYTES * len(self.entries)
        return own + self.attributes.resident_bytes

    def differing(self, page: Sequence[Embedding]) -> list[str]:
        """The ids of rows of a page of the GSI that differ from what is known here.

        After an overflow, those that were deleted, or are back. A row with the segment's vector is
        no change, and most rows of a build that followed a large import are such. Thread-safe.
        """
        entries, overflowed = self.entries, self.overflowed
        unknown = [
            row
            for row in page
            if (entry := entries.get(row.product_id)) is None or entry.updated_at != row.updated_at
        ]
        vectors = self._prepared(unknown)
        found = []
        for row in unknown:
            at = self.segment.row_of(row.product_id)
            state = self._state(at, vectors.get(row.product_id))
            if overflowed:
                differs = at is not None and bool(self._masked[at]) != (state == MASKED)
            else:
                # One that was deleted, and that the segment never had, is as it was.
                differs = row.product_id in entries or state not in {UNCHANGED, ABSENT}
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
            self._set(entries, product_id, moment, vectors.get(product_id))
        self._compact(entries)

    def carry_over(self, older: "DeltaBuffer", product_ids: Sequence[str]) -> None:
        """Takes what the buffer of an older segment knows and this segment may not have."""
        entries = self.entries.copy()
        for product_id in product_ids:
            entry = older.entries.get(product_id)
            if entry is None or product_id in entries or entry.updated_at <= self.watermark:
                continue
            self._set(entries, product_id, entry.updated_at, older.vector(product_id))
        self._compact(entries)

    def overflow(self) -> None:
        """Drops all but the mask of deleted rows, a byte for each row of the segment.

        What was overwritten is found with its old vector again: a catalogue that is written anew
        would otherwise be missing from the answers until its build is done.
        """
        deleted = [
            row
            for product_id, entry in self.entries.items()
            if entry.row == MASKED and (row := self.segment.row_of(product_id)) is not None
        ]
        self._masked = np.zeros(self.segment.rows, dtype=np.bool_)
        self._masked[deleted] = True
        self.overflowed = True
        self.entries = {}
        self.changed = 0
        self._clear()

    def masked_in(self, other: Segment) -> list[str]:
        """The products masked here that another segment has. Blocks, and is thread-safe."""
        masked = self.segment.ids_of(np.flatnonzero(self._masked))
        return [product_id for product_id in masked if other.row_of(product_id) is not None]

    def forget(self, before: str | None = None) -> None:
        """Drops entries without effect, of changes before a time: the GSI shows those by now."""
        self.entries = {
            product_id: entry
            for product_id, entry in self.entries.items()
            if entry.row not in {UNCHANGED, ABSENT}
            or (before is not None and entry.updated_at >= before)
        }

    def vector(self, product_id: str) -> Floats | None:
        """float32 (d,) of a row known here, prepared; None where it is deleted."""
        entry = self.entries[product_id]
        if entry.row >= 0:
            found: Floats = self._vectors[entry.row]
            return found
        row = self.segment.row_of(product_id) if entry.row == UNCHANGED else None
        return None if row is None else self.segment.vector(row)

    def snapshot(self) -> DeltaSnapshot:
        """The delta as it is now."""
        used, segment = len(self._ids), self.segment
        searcher = None
        if used:
            info = IndexInfo(
                family="exact",
                why="changed since the build",
                layout=Layout(segment.dimension, segment.metric),
                bytes=0,
                build={},
                norm_max=self._norm_max,
            )
            searcher = Searcher(self._vectors[:used], segment.metric, info)
        return DeltaSnapshot(
            self.entries,
            self.changed,
            _exclusion(self._masked),
            searcher,
            self._ids,
            _exclusion(self._superseded[:used]),
            self.attributes.snapshot(),
            self._slots.first(used),
        )

    def _prepared(self, rows: Sequence[Embedding]) -> dict[str, Floats]:
        """Vectors by product id, of those rows that an index could take."""
        size = 4 * self.segment.dimension
        fitting = [row for row in rows if row.vector is not None and len(row.vector) == size]
        data = b"".join(row.vector or b"" for row in fitting)
        vectors = np.frombuffer(data, dtype="<f4").reshape(len(fitting), self.segment.dimension)
        vectors = vectors.astype(np.float32, copy=False)
        good = check_rows(vectors, self.segment.metric) == 0
        vectors = prepare(vectors[good], self.segment.metric)
        ids = [row.product_id for row, fine in zip(fitting, good.tolist(), strict=True) if fine]
        return dict(zip(ids, vectors, strict=True))

    def _set(
        self, entries: dict[str, Entry], product_id: str, moment: str, vector: Floats | None
    ) -> None:
        at = self.segment.row_of(product_id)
        state = self._state(at, vector)
        if at is not None:
            self._masked[at] = state == MASKED if self.overflowed else state != UNCHANGED
        if self.overflowed:
            return
        before = entries.pop(product_id, None)
        if before is not None and before.row >= 0:
            self._superseded[before.row] = True
        self.changed -= before is not None and before.row not in {UNCHANGED, ABSENT}
        if state >= 0 and vector is not None:
            self._append(product_id, at, vector)
        has_effect = state not in {UNCHANGED, ABSENT}
        self.changed += has_effect
        # What the segment has from before its watermark needs no entry.
        if has_effect or moment > self.watermark:
            entries[product_id] = Entry(moment, state)

    def _state(self, at: int | None, vector: Floats | None) -> int:
        """The row that a vector would get here, or why it gets none; `at` is the segment's row."""
        if vector is None:
            return ABSENT if at is None else MASKED
        if at is not None and np.array_equal(self.segment.vector(at), vector):
            return UNCHANGED
        return len(self._ids)

    def _append(self, product_id: str, at: int | None, vector: Floats) -> None:
        used, capacity = len(self._ids), self._vectors.shape[0]
        if used == capacity:
            # The arrays of earlier snapshots stay as they are.
            grown = max(_CHUNK_ROWS, capacity + capacity // 2)
            vectors = np.empty((grown, self.segment.dimension), dtype=np.float32)
            vectors[:used] = self._vectors
            self._vectors = vectors
            more = np.zeros(grown - capacity, dtype=np.bool_)
            self._superseded = np.concatenate((self._superseded, more))
        self._vectors[used] = vector
        self._ids.append(product_id)
        self._slots.extend([self.attributes.slot(product_id, at)])
        if self.segment.metric != "cosine":
            norm = float(np.sqrt(squared_norms(vector[None])[0]))
            self._norm_max = max(self._norm_max, norm)

    def _compact(self, entries: dict[str, Entry]) -> None:
        """Puts entries to use, and drops superseded rows where they are more than half."""
        used = len(self._ids)
        superseded = self._superseded[:used]
        if used >= _CHUNK_ROWS and 2 * np.count_nonzero(superseded) > used:
            kept = np.flatnonzero(~superseded)
            self._vectors = self._vectors[kept]
            self._ids = [self._ids[row] for row in kept.tolist()]
            self._slots = GrowingArray(np.int32, self._slots.all()[kept])
            self._superseded = np.zeros(kept.shape[0], dtype=np.bool_)
            for row, product_id in enumerate(self._ids):
                entries[product_id] = Entry(entries[product_id].updated_at, row)
        self.entries = entries


def _exclusion(mask: NDArray[np.bool_]) -> Exclusion | None:
    rows = np.flatnonzero(mask)
    return Exclusion(mask.shape[0], rows) if rows.size else None
