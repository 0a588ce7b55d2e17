"""One version in memory: immutable, so that any number of requests may use it at once."""

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import numpy as np

from api.schemas import IndexUsed, Neighbor
from core.errors import Corrupt
from core.models import Metric, Model, now, timestamp
from core.vectors.arrays import Floats, Ints
from core.vectors.manifest import Manifest
from core.vectors.parameters import IndexInfo
from core.vectors.search import effort_for
from core.vectors.version import MappedVersion
from core.versions import leased
from core.watermarks import Watermark

_INLINE_US_MAX: Final = 1500.0
"""A search estimated at more goes to a thread: the event loop waits for nobody that long."""
_SCAN_US: Final = 0.00015
"""Microseconds to score one number of a scan, which goes through memory in order (measured)."""
_HOP_US: Final = 0.0004
"""The same in a graph, which jumps about (measured: 306 µs at 64 of 100,000 x 384)."""
_CODE_US: Final = 0.0003
"""For one byte of a code in an inverted list."""
_RESULT_US: Final = 0.6
_EXCLUDED_US: Final = 7.0
"""To find the row of one product id."""
_LINKS: Final = 30
_FEW: Final = 10
"""The usual k, whose estimate is made once."""


class LoadedIndex:
    """A mapped version of a model version, with what an answer says of it."""

    def __init__(self, version: MappedVersion, fence: int) -> None:
        manifest = version.manifest
        self._version = version
        self.manifest = manifest
        self.model_version = manifest.model_version
        self.build_id = manifest.build_id
        self.version = manifest.build_id, fence
        self.epoch = manifest.epoch
        self.metric: Metric = version.metric
        self.dimension = version.d
        self.rows = version.n
        self.resident_bytes = manifest.resident_bytes
        self.loaded_at = timestamp(now())
        self._always_exact = manifest.index.family == "exact"
        self._used = _used(manifest, exact=False, recall=manifest.recall.value)
        self._used_exact = _used(manifest, exact=True, recall=1.0)
        self.used_matrix = _used(
            manifest, exact=manifest.matrix.exact, recall=manifest.matrix.recall
        )
        """What answers neighbours from the matrix."""
        self._few_take_long = self._estimate_us(1, _FEW, 0, exact=False) > _INLINE_US_MAX

    @classmethod
    def open(cls, directory: Path, manifest: Manifest, model: Model) -> Self:
        """Maps a verified version, and leases its directory while it is in use. Blocks.

        Raises:
            Corrupt: its files do not fit together, or it is of another epoch of the data.
        """
        if manifest.epoch != model.epoch:
            raise Corrupt(
                f"the version is of epoch {manifest.epoch}, the data of {model.epoch}: build again"
            )
        with ExitStack() as stack:
            stack.enter_context(leased(directory))
            loaded = cls(MappedVersion.open(directory, manifest), model.current_fence)
            # Requests keep it as long as they run: the lease ends when the last one lets go.
            weakref.finalize(loaded, stack.pop_all().close)
        return loaded

    def used(self, *, exact: bool) -> IndexUsed:
        """What an answer says of the index that gave it."""
        return self._used_exact if exact or self._always_exact else self._used

    def reflects(self, after: Watermark) -> bool:
        """Whether every change up to the watermark is in the index."""
        return self.manifest.watermark > after.moment

    def row_of(self, product_id: str) -> int | None:
        """The row of a product; None where the index does not have it."""
        return self._version.row_of(product_id)

    def vector(self, row: int) -> Floats:
        """float32 (d,) of a row, as the index has it."""
        return self._version.vector(row)

    def search(
        self,
        vectors: Sequence[Floats],
        k: int,
        *,
        exact: bool = False,
        exclude: Sequence[str] = (),
        without_row: int | None = None,
        min_score: float | None = None,
    ) -> list[list[Neighbor]]:
        """The nearest products of each vector, nearest first.

        Args:
            vectors: float32 (d,) each, checked.
            k: how many; fewer come back where there are fewer.
            exact: whether to score every row.
            exclude: product ids that are not wanted; one that is unknown is none the less fine.
            without_row: a row that is not wanted: the product that is asked about.
            min_score: the least score that is wanted.
        """
        out = [row for row in map(self.row_of, exclude) if row is not None]
        if without_row is not None:
            out.append(without_row)
        excluded = self._version.exclusion(np.array(out, dtype=np.int64)) if out else None
        if len(vectors) == 1:
            rows, scores = self._version.search_one(vectors[0], k, exact=exact, excluded=excluded)
            return [self._named(rows, scores, min_score)]
        many, found = self._version.search(np.stack(vectors), k, exact=exact, excluded=excluded)
        result = []
        for rows, scores in zip(many, found, strict=True):
            count = int(np.count_nonzero(rows >= 0))
            result.append(self._named(rows[:count], scores[:count], min_score))
        return result

    def near_row(self, row: int, k: int) -> list[Neighbor]:
        """The neighbours of a row by the index."""
        return self.search([self.vector(row)], k, without_row=row)[0]

    def neighbors(self, row: int, k: int) -> list[Neighbor] | None:
        """The neighbours of a row from the matrix; None where it has too few of them."""
        rows, scores = self._version.neighbors(row, k)
        if rows.shape[0] < min(k, self.rows - 1):
            return None
        return self._named(rows, scores, None)

    def takes_long(self, vectors: int, k: int, *, exact: bool, excluded: int = 0) -> bool:
        """Whether a search would hold up the event loop, by an estimate of its cost."""
        if vectors == 1 and k <= _FEW and not exact and not excluded:
            return self._few_take_long
        return self._estimate_us(vectors, k, excluded, exact=exact) > _INLINE_US_MAX

    def _named(self, rows: Ints, scores: Floats, min_score: float | None) -> list[Neighbor]:
        if min_score is not None:
            count = int(np.count_nonzero(scores >= min_score))
            rows, scores = rows[:count], scores[:count]
        ids = self._version.ids_of(rows)
        return [Neighbor(i, score) for i, score in zip(ids, scores.tolist(), strict=True)]

    def _estimate_us(self, vectors: int, k: int, excluded: int, *, exact: bool) -> float:
        """Microseconds that a search may take, to within a factor of a few."""
        info = self.manifest.index
        one = _SCAN_US * self.rows * self.dimension
        if not exact and not self._always_exact:
            one = min(one, _index_us(info, self.rows, self.dimension, k))
        return vectors * (one + _RESULT_US * k) + _EXCLUDED_US * excluded


def _index_us(info: IndexInfo, rows: int, dimension: int, k: int) -> float:
    breadth, candidates = effort_for(info.efforts, k)
    ranked = _HOP_US * candidates * dimension
    if info.family == "ivf_pq":
        lists = float(info.build.get("lists", 1))
        code_bytes = float(info.build.get("code_bytes", dimension))
        return ranked + _CODE_US * breadth * rows / max(1.0, lists) * code_bytes
    return ranked + _HOP_US * breadth * _LINKS * dimension


def _used(manifest: Manifest, *, exact: bool, recall: float) -> IndexUsed:
    return IndexUsed(
        build_id=manifest.build_id,
        built_at=manifest.built_at,
        recall=recall,
        exact=exact,
        watermark=manifest.watermark,
        fresh=None,
    )
