"""What answers for a model version: one index, and what changed since, at one moment."""

from collections.abc import Sequence
from typing import Final

import msgspec

from api.serving.delta import UNCHANGED, DeltaSnapshot, Entries, merged
from api.serving.segment import Segment
from api.wire.schemas import IndexUsed, Neighbor
from core.models import Watermark
from core.vectors.arrays import Floats

_SCAN_RATIO: Final = 4
"""With more than a fourth of its rows hidden, an index may find too few, and scan all of them."""


class Snapshot:
    """Immutable: a request answers from the one that it began with.

    A product's place is its row in the index, or `~slot` (negative) in the buffer.
    """

    __slots__ = (
        "_delta",
        "_entries",
        "_hidden",
        "_polled_at",
        "_used",
        "_used_exact",
        "beside_takes_long",
        "dimension",
        "index",
        "metric",
        "model_version",
        "used_matrix",
    )

    def __init__(
        self,
        index: Segment,
        delta: DeltaSnapshot | None = None,
        entries: Entries | None = None,
        *,
        fresh: int | None = None,
        polled_at: str = "",
    ) -> None:
        """A view.

        Args:
            index: What was built.
            delta: What changed since; None where nothing did, or where it is not applied.
            entries: The rows that were read since, by product id.
            fresh: What answers say of it; None where changes are not applied, or not all, or not
                known to be.
            polled_at: When the shards were last looked through, less what clocks differ by.
        """
        self.index = index
        self._delta = delta
        self._hidden = delta.hidden if delta else None
        self._entries = entries or {}
        self._polled_at = polled_at
        self.model_version = index.model_version
        self.dimension = index.dimension
        self.metric = index.metric
        self._used = _with(index.used(exact=False), fresh)
        self._used_exact = _with(index.used(exact=True), fresh)
        self.used_matrix = _with(index.used_matrix, fresh)
        """What answers neighbours from the matrix."""
        self.beside_takes_long = delta is not None and index.scan_takes_long(delta.numbers)
        """Whether what changed is too much to go through on the event loop."""

    def used(self, *, exact: bool) -> IndexUsed:
        """What an answer says of what gave it."""
        return self._used_exact if exact else self._used

    def reflects(self, after: Watermark) -> bool:
        """Whether the write is surely in it; if not, reading the row or the shards can tell."""
        if after.generation not in {None, self.index.generation}:
            return False
        if self.index.manifest.watermark > after.moment:
            return True
        if after.product_id is None:
            return self._polled_at > after.moment
        entry = self._entries.get(after.product_id)
        # A later time may be of an earlier write, by another clock.
        return entry is not None and entry.updated_at == after.moment

    def place_of(self, product_id: str) -> int | None:
        """Where a product is; None where it is not, or no longer."""
        entry = self._entries.get(product_id)
        if entry is not None and entry.slot != UNCHANGED:
            return ~entry.slot if entry.slot >= 0 else None
        row = self.index.row_of(product_id)
        if row is not None and self._hidden is not None and self._hidden.has(row):
            return None  # past the hard limit, where nothing else is known of it
        return row

    def vector(self, place: int) -> Floats:
        """float32 (d,) of a product, as it is searched: a unit row under cosine."""
        if place >= 0 or self._delta is None:
            return self.index.vector(place)
        return self._delta.vector(~place)

    def search(
        self,
        vectors: Sequence[Floats],
        k: int,
        *,
        exact: bool = False,
        exclude: Sequence[str] = (),
        without: int | None = None,
        min_score: float | None = None,
    ) -> list[list[Neighbor]]:
        """The nearest products of each vector, nearest first.

        Args:
            vectors: float32 (d,) each, checked.
            k: how many; fewer come back where there are fewer.
            exact: whether to score every row.
            exclude: product ids that are not wanted; one that is unknown is none the less fine.
            without: the place of a product that is not wanted: the one that is asked about.
            min_score: the least score that is wanted.
        """
        places = [place for place in map(self.place_of, exclude) if place is not None]
        if without is not None:
            places.append(without)
        found = self.index.search(
            vectors,
            k,
            exact=exact,
            hidden=self._hidden,
            without=[place for place in places if place >= 0],
            min_score=min_score,
        )
        if self._delta is None:
            return found
        slots = [~place for place in places if place < 0]
        fresh = self._delta.search(vectors, k, slots, min_score)
        return [merged(old, new, k) for old, new in zip(found, fresh, strict=True)]

    def near(self, place: int, k: int) -> list[Neighbor]:
        """The neighbours of a product by a search."""
        return self.search([self.vector(place)], k, without=place)[0]

    def neighbors(self, place: int, k: int) -> list[Neighbor] | None:
        """The neighbours of a product from the matrix, with what changed since among them.

        None where the matrix does not know the product as it is, or has too few left of them.
        """
        if self._delta is None:
            return self.index.neighbors(place, k)
        if place < 0:
            return None
        found = self.index.neighbors(place, k, self._hidden)
        if found is None:
            return None
        return merged(found, self._delta.search([self.vector(place)], k, (), None)[0], k)

    def takes_long(self, vectors: int, k: int, *, exact: bool, excluded: int = 0) -> bool:
        """Whether a search would hold up the event loop, by an estimate of its cost."""
        beside = self._numbers_beside()
        return self.index.takes_long(vectors, k, exact=exact, excluded=excluded, beside=beside)

    def estimate_us(self, vectors: int, k: int, *, exact: bool, excluded: int = 0) -> float:
        """Microseconds that a search may take on a thread, to within a factor of a few."""
        beside = self._numbers_beside()
        return self.index.estimate_us(vectors, k, exact=exact, excluded=excluded, beside=beside)

    @property
    def searched_at_once(self) -> int:
        """Of many vectors, how many are searched in one step."""
        return self.index.searched_at_once

    def _numbers_beside(self) -> int:
        """How many numbers a vector is held against beside the index."""
        if self._delta is None:
            return 0
        beside = self._delta.numbers
        if self._hidden is not None and self._hidden.count * _SCAN_RATIO > self.index.rows:
            beside += self.index.rows * self.index.dimension
        return beside


def _with(used: IndexUsed, fresh: int | None) -> IndexUsed:
    return msgspec.structs.replace(used, fresh=fresh)
