"""One version of an index in memory: immutable, so any number of requests may search it at once."""

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from api.serving.cost import SearchCost, scan_us
from core.attributes.filters import Filter
from core.attributes.selection import Mask
from core.attributes.values import Attributes
from core.errors import Corrupt
from core.index.cache import leased
from core.index.manifest import Manifest
from core.index.version import MappedVersion
from core.models import Metric, Model, now, timestamp
from core.vectors.arrays import Floats
from core.vectors.filtered import Allowed, FilteredSearcher, Plan
from core.vectors.search import Exclusion

_FEW: Final = 64
"""One row in so many, or fewer: their numbers take less time than a mask of all rows."""


class Hits(msgspec.Struct, frozen=True, gc=False):
    """The nearest products of one vector, by (-score, product id)."""

    product_ids: list[str]
    scores: list[float]


class Provenance(msgspec.Struct, frozen=True):
    """Which index answered, and how exactly."""

    build_id: str
    built_at: str
    """RFC 3339, UTC."""
    recall: float
    """As measured for the way it answered; 1 where every row was scored."""
    exact: bool
    watermark: str
    """RFC 3339, UTC: every change made before it is in the index."""
    fresh: int | None = None
    """Rows changed since that were searched too; None where not all of them are known."""


class Segment:
    """A mapped version of a model version's index."""

    def __init__(self, version: MappedVersion, fence: int) -> None:
        manifest = version.manifest
        self._columns = version.columns
        self._ids = version.ids
        self._searcher = searcher = version.searcher
        self._filtered = FilteredSearcher(searcher)
        self._neighbors = version.neighbors
        self._neighbor_scores = version.scores
        self.manifest = manifest
        self.model_version = manifest.model_version
        self.build_id = manifest.build_id
        self.fence = fence
        self.data = manifest.data
        self.generation = manifest.generation
        self.metric: Metric = searcher.metric
        self.dimension = searcher.d
        self.rows = searcher.n
        self.resident_bytes = manifest.resident_bytes
        self.loaded_at = timestamp(now())
        self.cost = SearchCost(manifest.index, self.rows, self.dimension)
        self.exact_provenance = _provenance(manifest, exact=True, recall=1.0)
        self.provenance = (
            self.exact_provenance
            if manifest.index.family == "exact"
            else _provenance(manifest, exact=False, recall=manifest.recall.value)
        )
        self.matrix_provenance = _provenance(
            manifest, exact=manifest.matrix.exact, recall=manifest.matrix.recall
        )

    @classmethod
    def open(cls, directory: Path, manifest: Manifest, model: Model) -> Self:
        """Maps a verified version, and leases its directory while it is in use. Blocks.

        Raises:
            Corrupt: its files do not fit together, or it is of another epoch of the data.
        """
        if manifest.data != model.data:
            raise Corrupt(
                f"the version is of generation and epoch {manifest.data}, the model version of "
                f"{model.data}: build again"
            )
        with ExitStack() as stack:
            stack.enter_context(leased(directory))
            segment = cls(MappedVersion.open(directory, manifest), model.current_fence)
            # Requests keep a segment as long as they run: the lease ends with the last of them.
            weakref.finalize(segment, stack.pop_all().close)
        return segment

    def row_of(self, product_id: str) -> int | None:
        """The row of a product; None where the index does not have it."""
        return self._ids.row_of(product_id)

    def ids_of(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """The products of rows (any,), in their order."""
        return self._ids.ids_of(rows)

    def vector(self, row: int) -> Floats:
        """float32 (d,) of a row, as the index has it: a unit row under cosine. Not a copy."""
        found: Floats = self._searcher.rows[row]
        return found

    @property
    def has_attributes(self) -> bool:
        """Whether the attributes of its rows are in it; earlier releases built without them."""
        return self.manifest.rows_with_attributes is not None

    def attributes(self, row: int) -> Attributes:
        """The attributes of a row, as they were built.

        Raises:
            Corrupt: they cannot be read.
        """
        return {} if self._columns is None else self._columns.attributes(row)

    def attributes_text(self, row: int) -> bytes:
        """The same, as `canonical_text` writes them."""
        return b"" if self._columns is None else self._columns.text(row)

    def select(self, condition: Filter) -> Mask:
        """Bool (rows,): the rows whose attributes, as they were built, match."""
        if self._columns is None:
            return np.full(self.rows, condition.matches({}), dtype=np.bool_)
        return self._columns.select(condition)

    def select_few(self, condition: Filter) -> Allowed | None:
        """The same where that is known to be few at once; None where `select` has to tell."""
        if self._columns is None:
            return None
        rows = self._columns.few(condition, self.rows // _FEW)
        return None if rows is None else Allowed.few(rows, self.rows)

    def search(
        self,
        vectors: Sequence[Floats],
        k: int,
        *,
        exact: bool = False,
        excluded: Exclusion | None = None,
        min_score: float | None = None,
    ) -> list[Hits]:
        """As `Snapshot.search`; `excluded` are rows left out."""
        if len(vectors) == 1:
            rows, scores = self._searcher.search_one(vectors[0], k, exact=exact, excluded=excluded)
            return [self._hits(rows, scores, min_score)]
        lines = zip(
            *self._searcher.search(np.stack(vectors), k, exact=exact, excluded=excluded),
            strict=True,
        )
        found = []
        for rows, scores in lines:
            count = int(np.count_nonzero(rows >= 0))
            found.append(self._hits(rows[:count], scores[:count], min_score))
        return found

    def search_allowed(
        self,
        vector: Floats,
        k: int,
        allowed: Allowed,
        *,
        exact: bool = False,
        min_score: float | None = None,
    ) -> tuple[Hits, Plan]:
        """The nearest of the allowed rows, and how they were found; the rest as in `search`."""
        found = self._filtered.search_one(vector, k, allowed, plan="scan" if exact else None)
        return self._hits(found.rows, found.scores, min_score), found.plan

    def allowed_us(self, allowed: int, k: int, *, exact: bool = False) -> float:
        """Microseconds that such a search among so many rows may take."""
        if exact:
            return scan_us(allowed * self.dimension)
        return self._filtered.estimate_us(allowed, k)

    def effort(self, plan: Plan, allowed: int, k: int) -> tuple[int, int]:
        """Breadth and candidates of a search, as `FilteredSearcher.effort` has them."""
        return self._filtered.effort(plan, allowed, k)

    def matrix_neighbors(self, row: int, k: int, excluded: Exclusion | None = None) -> Hits | None:
        """The neighbours of a row from the matrix; None where it has too few of them."""
        left = self.rows - 1
        rows = self._neighbors[row, :k] if excluded is None else self._neighbors[row]
        if rows.shape[0] and rows[-1] < 0:  # a small version: the rest of the line is padding
            rows = rows[: np.count_nonzero(rows >= 0)]
        scores = self._neighbor_scores[row, : rows.shape[0]]
        if excluded is not None:
            left -= excluded.count
            kept = np.flatnonzero(~excluded.contains(rows.astype(np.int64)))[:k]
            rows, scores = rows[kept], scores[kept]
        if rows.shape[0] < min(k, left):
            return None
        return self._hits(rows, scores, None)

    def _hits(
        self, rows: NDArray[np.integer[Any]], scores: Floats, min_score: float | None
    ) -> Hits:
        if min_score is not None:
            count = int(np.count_nonzero(scores >= np.float64(min_score)))
            rows, scores = rows[:count], scores[:count]
        # Adding 0 makes 0 of -0; one by one, since a few of them cost less than a call of numpy.
        return Hits(self._ids.ids_of(rows), [score + 0.0 for score in scores.tolist()])


def _provenance(manifest: Manifest, *, exact: bool, recall: float) -> Provenance:
    return Provenance(
        build_id=manifest.build_id,
        built_at=manifest.built_at,
        recall=recall,
        exact=exact,
        watermark=manifest.watermark,
    )
