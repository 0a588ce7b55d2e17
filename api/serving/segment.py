"""One version in memory: immutable, so that any number of requests may use it at once."""

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import numpy as np

from api.wire.schemas import IndexUsed, Neighbor
from core.errors import Corrupt
from core.index.cache import leased
from core.index.manifest import Manifest
from core.index.version import MappedVersion
from core.models import Metric, Model, now, timestamp
from core.vectors.arrays import Floats, Ints
from core.vectors.parameters import IndexInfo
from core.vectors.search import Exclusion, effort_for

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
_STEP_VECTORS: Final = 128
"""A product of matrices of fewer vectors takes more time a vector: twice as much with 16."""
_MANY: Final = 16
_MANY_RATIO: Final = 0.3
"""Of the time of a scan with one vector, that of each of so many in one product (measured)."""
_STEP_NUMBERS: Final = 16 << 20
"""Scores of one step, of a scan."""
_FEW: Final = 10
"""The usual k, whose estimate is made once."""


class Segment:
    """A mapped version of a model version, with what an answer says of it."""

    def __init__(self, version: MappedVersion, fence: int) -> None:
        manifest = version.manifest
        self._version = version
        self.manifest = manifest
        self.model_version = manifest.model_version
        self.build_id = manifest.build_id
        self.version = manifest.build_id, fence
        self.data = manifest.data
        self.generation = manifest.generation
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
        self.searched_at_once = max(1, min(_STEP_VECTORS, _STEP_NUMBERS // max(1, self.rows)))
        """Of many vectors, how many are searched in one step."""
        self._few_take_long = self._estimate_us(1, _FEW, 0, exact=False) > _INLINE_US_MAX

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
            loaded = cls(MappedVersion.open(directory, manifest), model.current_fence)
            # Requests keep it as long as they run: the lease ends when the last one lets go.
            weakref.finalize(loaded, stack.pop_all().close)
        return loaded

    def used(self, *, exact: bool) -> IndexUsed:
        """What an answer says of the index that gave it."""
        return self._used_exact if exact or self._always_exact else self._used

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
        hidden: Exclusion | None = None,
        without: Sequence[int] = (),
        min_score: float | None = None,
    ) -> list[list[Neighbor]]:
        """The nearest products of each vector, nearest first.

        Args:
            vectors: float32 (d,) each, checked.
            k: how many; fewer come back where there are fewer.
            exact: whether to score every row.
            hidden: rows whose form in the index is not the present one.
            without: further rows that are not wanted.
            min_score: the least score that is wanted.
        """
        excluded = hidden
        if without:
            rows = np.array(without, dtype=np.int64)
            excluded = hidden.plus(rows) if hidden else self._version.exclusion(rows)
        if len(vectors) == 1:
            near, top = self._version.search_one(vectors[0], k, exact=exact, excluded=excluded)
            return [self._named(near, top, min_score)]
        many, found = self._version.search(np.stack(vectors), k, exact=exact, excluded=excluded)
        result = []
        for near, top in zip(many, found, strict=True):
            count = int(np.count_nonzero(near >= 0))
            result.append(self._named(near[:count], top[:count], min_score))
        return result

    def neighbors(self, row: int, k: int, hidden: Exclusion | None = None) -> list[Neighbor] | None:
        """The neighbours of a row from the matrix; None where it has too few of them."""
        left = self.rows - 1
        if hidden is None:
            rows, scores = self._version.neighbors(row, k)
        else:
            left -= hidden.count
            rows, scores = self._version.neighbors(row, self._version.matrix_k)
            kept = np.flatnonzero(~hidden.drop(rows))[:k]
            rows, scores = rows[kept], scores[kept]
        if rows.shape[0] < min(k, left):
            return None
        return self._named(rows, scores, None)

    def takes_long(
        self, vectors: int, k: int, *, exact: bool, excluded: int = 0, beside: int = 0
    ) -> bool:
        """Whether a search would hold up the event loop, by an estimate of its cost.

        `beside` is how many numbers a vector is held against beside the index.
        """
        if vectors == 1 and k <= _FEW and not exact and not excluded and not beside:
            return self._few_take_long
        estimated = self._estimate_us(vectors, k, excluded, exact=exact)
        return estimated + vectors * _SCAN_US * beside > _INLINE_US_MAX

    def estimate_us(
        self, vectors: int, k: int, *, exact: bool, excluded: int = 0, beside: int = 0
    ) -> float:
        """Microseconds that a search may take, to within a factor of a few."""
        estimated = self._estimate_us(vectors, k, excluded, exact=exact)
        estimated += vectors * _SCAN_US * beside
        if vectors >= _MANY and (exact or self._always_exact):
            estimated *= _MANY_RATIO
        return estimated

    @staticmethod
    def scan_takes_long(numbers: int) -> bool:
        """Whether going through so many numbers would hold up the event loop."""
        return _SCAN_US * numbers > _INLINE_US_MAX

    def _named(self, rows: Ints, scores: Floats, min_score: float | None) -> list[Neighbor]:
        if min_score is not None:
            count = int(np.count_nonzero(scores >= np.float64(min_score)))
            rows, scores = rows[:count], scores[:count]
        ids = self._version.ids_of(rows)
        # Adding 0 makes 0 of -0.
        return [Neighbor(i, score) for i, score in zip(ids, (scores + 0).tolist(), strict=True)]

    def _estimate_us(self, vectors: int, k: int, excluded: int, *, exact: bool) -> float:
        """Microseconds that a search may take, to within a factor of a few."""
        info = self.manifest.index
        one = _SCAN_US * self.rows * self.dimension
        if not exact and not self._always_exact:
            one = min(one, _index_us(info, self.rows, self.dimension, k))
        return vectors * (one + _RESULT_US * k) + _EXCLUDED_US * excluded


def _index_us(info: IndexInfo, rows: int, dimension: int, k: int) -> float:
    breadth, candidates = effort_for(info.efforts, k)
    ranked = _HOP_US * (candidates + info.near_copies_max) * dimension
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
