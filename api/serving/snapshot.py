"""What answers for a model version: a segment and its delta at one moment."""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from api.serving.attributes import AttributeSnapshot
from api.serving.cost import EXCLUDED_US, scan_us
from api.serving.delta import UNCHANGED, DeltaSnapshot
from api.serving.segment import Hits, Provenance, Segment
from core.attributes.filters import Filter
from core.attributes.selection import Mask, conditions_of, values_of
from core.attributes.values import Attributes
from core.models import Watermark
from core.vectors.arrays import Floats
from core.vectors.filtered import Allowed, Plan
from core.vectors.parameters import recall_of
from core.vectors.search import Exclusion

_SCAN_RATIO: Final = 4
"""With more than a fourth of its rows masked, an index may find too few, and scan all of them."""
_SELECT_ROW_US: Final = 0.0015
"""Microseconds that a condition of a filter takes for a row of the segment."""
_CHANGE_US: Final = 0.004
"""The same for changed attributes, which are in no order."""
_VALUE_US: Final = 5.0
"""To find one value that a filter names."""
_NO_DELTA: Final[Mask] = np.zeros(0, dtype=np.bool_)
_NO_DELTA.flags.writeable = False


class RowRef(msgspec.Struct, frozen=True, gc=False):
    """Where a snapshot has the present vector of a product."""

    row: int
    in_delta: bool = False
    """Whether it is a row of the delta; else it is one of the segment."""


class Matching(msgspec.Struct, frozen=True):
    """The products that match a filter at one moment, and may be found."""

    rows: Allowed
    """Of the segment."""
    delta: Mask
    """Bool: of the delta."""

    @property
    def count(self) -> int:
        """How many there are."""
        return self.rows.count + int(np.count_nonzero(self.delta))


class Snapshot:
    """Immutable: a request answers from the one that it began with."""

    def __init__(
        self,
        segment: Segment,
        delta: DeltaSnapshot | None = None,
        *,
        complete: bool = False,
        polled_at: str = "",
    ) -> None:
        """Combines them.

        Args:
            segment: What was built.
            delta: What changed since; None where changes are not followed.
            complete: Whether the delta has all that changed, so that answers may say how much.
            polled_at: When the shards were last read through, less the greatest difference of
                clocks.
        """
        self.segment = segment
        self._entries = delta.entries if delta else {}
        self._attributes = delta.attributes if delta else AttributeSnapshot(segment)
        self._masked = delta.masked if delta else None
        self._delta = delta if delta and delta.has_effect else None
        self._as_built = (
            self._delta is None and self._masked is None and not self._attributes.changed
        )
        self._polled_at = polled_at
        self.model_version = segment.model_version
        self.dimension = segment.dimension
        self.metric = segment.metric
        self.provenance, self.exact_provenance, self.matrix_provenance = (
            msgspec.structs.replace(each, fresh=delta.changed if delta and complete else None)
            for each in (segment.provenance, segment.exact_provenance, segment.matrix_provenance)
        )
        numbers = delta.rows * segment.dimension if delta else 0
        self.matrix_us = scan_us(numbers)
        """Microseconds that neighbours from the matrix may take."""
        if self._masked is not None and self._masked.count * _SCAN_RATIO > segment.rows:
            numbers += segment.rows * segment.dimension
        self._extra_numbers = numbers

    def reflects(self, after: Watermark) -> bool:
        """Whether the write is surely in it; if not, reading the row or the shards can tell."""
        if after.generation not in {None, self.segment.generation}:
            return False
        if self.segment.manifest.watermark > after.moment:
            return True
        if after.product_id is None:
            return self._polled_at > after.moment
        entry = self._entries.get(after.product_id)
        # A later time may be of an earlier write, by another clock.
        if entry is not None and entry.updated_at == after.moment:
            return True
        # Attributes of a new product may be read before its row.
        known = self.find(after.product_id) is not None
        return known and self._attributes.reflects(after.product_id, after.moment)

    def find(self, product_id: str) -> RowRef | None:
        """Where the present vector of a product is; None where there is none, or none any more."""
        entry = self._entries.get(product_id)
        if entry is not None and entry.row != UNCHANGED:
            return RowRef(entry.row, in_delta=True) if entry.row >= 0 else None
        row = self.segment.row_of(product_id)
        if row is None or (self._masked is not None and row in self._masked):
            return None  # masked without an entry: after an overflow
        return RowRef(row)

    def attributes(self, ref: RowRef) -> Attributes:
        """The attributes of a product.

        Raises:
            Corrupt: they cannot be read.
        """
        if not ref.in_delta:
            (product_id,) = self.segment.ids_of(np.array([ref.row]))
            return self._attributes.of(product_id, ref.row)
        if self._delta is None:
            return {}
        product_id = self._delta.product_id(ref.row)
        return self._attributes.of(product_id, self.segment.row_of(product_id))

    def attributes_of(self, product_id: str) -> Attributes:
        """The attributes of a product that a search found.

        Raises:
            Corrupt: they cannot be read.
        """
        return self._attributes.of(product_id, self.segment.row_of(product_id))

    def vector(self, ref: RowRef) -> Floats:
        """float32 (d,) of a product, as it is searched: a unit row under cosine."""
        if ref.in_delta and self._delta is not None:
            return self._delta.vector(ref.row)
        return self.segment.vector(ref.row)

    def search(
        self,
        vectors: Sequence[Floats],
        k: int,
        *,
        exact: bool = False,
        exclude: Sequence[RowRef] = (),
        min_score: float | None = None,
    ) -> list[Hits]:
        """The nearest products of each vector, nearest first.

        Args:
            vectors: float32 (d,) each, checked.
            k: results for each; fewer where there are fewer products.
            exact: whether to score every row.
            exclude: products left out of the results.
            min_score: the least score of a result.
        """
        excluded = self._masked
        if exclude:
            rows = [ref.row for ref in exclude if not ref.in_delta]
            excluded = Exclusion.extended(excluded, self.segment.rows, rows)
        hits = self.segment.search(vectors, k, exact=exact, excluded=excluded, min_score=min_score)
        delta = self._delta
        if delta is None:
            return hits
        rows = [ref.row for ref in exclude if ref.in_delta]
        excluded = Exclusion.extended(delta.superseded, delta.rows, rows)
        return delta.merged(vectors, hits, k, excluded=excluded, min_score=min_score)

    def matching(self, condition: Filter) -> Matching:
        """The products that match a filter."""
        if self._as_built:
            few = self.segment.select_few(condition)
            if few is not None:
                return Matching(few, _NO_DELTA)
        products = self._attributes.select(condition)
        rows = products[: self.segment.rows]
        delta = np.zeros(0, dtype=np.bool_)
        if self._delta is not None:
            delta = self._delta.marked(products)
        if self._masked is not None:
            self._masked.clear(rows)
        return Matching(Allowed(rows), delta)

    def matching_us(self, condition: Filter) -> float:
        """Microseconds that this may take."""
        rows = _SELECT_ROW_US * self.segment.rows + _CHANGE_US * self._attributes.changed
        return _VALUE_US * values_of(condition) + rows * conditions_of(condition)

    def search_matching(
        self,
        vectors: Sequence[Floats],
        k: int,
        matching: Matching,
        *,
        exact: bool = False,
        exclude: Sequence[RowRef] = (),
        min_score: float | None = None,
        used: list[Plan] | None = None,
    ) -> tuple[list[Hits], Provenance]:
        """The same as `search` among the products that match, and how they were found.

        `used` gets the plan of each search.
        """
        allowed = matching.rows
        if exclude and (rows := [ref.row for ref in exclude if not ref.in_delta]):
            allowed = allowed.without(np.array(rows, dtype=np.int64))
        hits: list[Hits] = []
        plans: list[Plan] = []
        for vector in vectors:
            found, plan = self.segment.search_allowed(
                vector, k, allowed, exact=exact, min_score=min_score
            )
            hits.append(found)
            plans.append(plan)
        if used is not None:
            used += plans
        provenance = self._provenance_of(set(plans), allowed.count)
        if self._delta is None:
            return hits, provenance
        in_delta = matching.delta.copy()
        in_delta[[ref.row for ref in exclude if ref.in_delta]] = False
        excluded = Exclusion(in_delta.shape[0], np.flatnonzero(~in_delta))
        return (
            self._delta.merged(vectors, hits, k, excluded=excluded, min_score=min_score),
            provenance,
        )

    def _provenance_of(self, plans: set[Plan], allowed: int) -> Provenance:
        """With the recall that was measured for searches which allow as many rows."""
        if plans <= {"scan"}:
            return self.exact_provenance
        recall = recall_of(self.segment.manifest.filtered_recall, allowed / self.segment.rows)
        if recall is None or "all" in plans:
            return self.provenance
        return msgspec.structs.replace(self.provenance, recall=recall)

    def search_near(self, ref: RowRef, k: int) -> Hits:
        """The neighbours of a product by a search."""
        return self.search([self.vector(ref)], k, exclude=[ref])[0]

    def search_near_matching(
        self, ref: RowRef, k: int, matching: Matching
    ) -> tuple[Hits, Provenance]:
        """The neighbours of a product among those that match, by a search."""
        (hits,), provenance = self.search_matching([self.vector(ref)], k, matching, exclude=[ref])
        return hits, provenance

    def matrix_neighbors(self, ref: RowRef, k: int) -> Hits | None:
        """The neighbours of a product from the matrix, with what changed since among them.

        None where the matrix does not have its present vector, or has too few neighbours left.
        """
        delta = self._delta
        if delta is None:
            return self.segment.matrix_neighbors(ref.row, k)
        if ref.in_delta:
            return None
        hits = self.segment.matrix_neighbors(ref.row, k, self._masked)
        if hits is None:
            return None
        vector = self.segment.vector(ref.row)
        return delta.merged([vector], [hits], k, excluded=delta.superseded)[0]

    def search_matching_us(
        self, vectors: int, k: int, matching: Matching, *, exact: bool = False, excluded: int = 0
    ) -> float:
        """Microseconds that a search among the products that match may take."""
        one = self.segment.allowed_us(matching.rows.count, k, exact=exact)
        one += scan_us(matching.delta.shape[0] * self.dimension)
        return vectors * one + EXCLUDED_US * excluded

    @property
    def rows(self) -> int:
        """How many products there are."""
        masked = self._masked.count if self._masked is not None else 0
        delta = self._delta
        fresh = 0 if delta is None else delta.rows
        if delta is not None and delta.superseded is not None:
            fresh -= delta.superseded.count
        return self.segment.rows - masked + fresh

    def search_us(self, vectors: int, k: int, *, exact: bool = False, excluded: int = 0) -> float:
        """Microseconds that a search may take, as `SearchCost.search_us` estimates it."""
        return self.segment.cost.search_us(
            vectors, k, exact=exact, excluded=excluded, delta_numbers=self._extra_numbers
        )
