"""What a search costs, by estimate: one that would hold up the event loop runs on a thread."""

from typing import Final

from core.vectors.parameters import IndexInfo, effort_for

INLINE_US_MAX: Final = 1500.0
"""A search estimated at more runs on a thread: nothing else on the event loop waits for longer."""
_SCAN_US: Final = 0.00015
"""Microseconds to score one number of a scan, which reads memory in order (measured)."""
_HOP_US: Final = 0.0004
"""The same in a graph, which reads it at random (measured: 306 µs at 64 of 100,000 x 384)."""
_CODE_US: Final = 0.0003
"""For one byte of a code in an inverted list."""
_RESULT_US: Final = 0.6
EXCLUDED_US: Final = 7.0
"""To find the row of one product id."""
_LINKS: Final = 30
_STEP_VECTORS: Final = 128
"""A product of matrices of fewer vectors takes more time a vector: twice as much with 16."""
_STEP_SCORES: Final = 16 << 20
"""Scores of one step of a scan."""
_BATCH_VECTORS: Final = 16
_BATCH_RATIO: Final = 0.3
"""A scan by one product of at least so many vectors takes this share of the time a vector that a
scan with one vector takes (measured)."""
_USUAL_K: Final = 10
"""Up to this k the estimate for one vector is made once."""


class SearchCost:
    """Estimates for one segment, to within a factor of a few."""

    __slots__ = ("_dimension", "_exact", "_info", "_rows", "_scan_us", "_usual_us", "step_vectors")

    def __init__(self, info: IndexInfo, rows: int, dimension: int) -> None:
        self._info = info
        self._exact = info.family == "exact"
        self._rows = rows
        self._dimension = dimension
        self._scan_us = scan_us(rows * dimension)
        self._usual_us = 0.0 if self._exact else self._index_us(_USUAL_K)
        self.step_vectors = max(1, min(_STEP_VECTORS, _STEP_SCORES // max(1, rows)))
        """Of many vectors, how many are searched in one step."""

    def search_us(
        self, vectors: int, k: int, *, exact: bool, excluded: int = 0, delta_numbers: int = 0
    ) -> float:
        """Microseconds that a search may take.

        Args:
            vectors: how many are searched for.
            k: results for each.
            exact: whether every row is scored.
            excluded: product ids whose rows are looked up, to leave them out.
            delta_numbers: float32 numbers that each vector is compared with besides the index.
        """
        delta_us = _SCAN_US * delta_numbers
        if exact or self._exact:
            one = self._scan_us + delta_us
            if vectors >= _BATCH_VECTORS:
                one *= _BATCH_RATIO
        else:
            index_us = self._usual_us if k <= _USUAL_K else self._index_us(k)
            one = min(self._scan_us, index_us) + delta_us
        return vectors * (one + _RESULT_US * k) + EXCLUDED_US * excluded

    def _index_us(self, k: int) -> float:
        info, dimension = self._info, self._dimension
        breadth, candidates = effort_for(info.efforts, k)
        ranked = _HOP_US * (candidates + info.near_copies_max) * dimension
        if info.family == "ivf_pq":
            lists = float(info.build.get("lists", 1))
            code_bytes = float(info.build.get("code_bytes", dimension))
            return ranked + _CODE_US * breadth * self._rows / max(1.0, lists) * code_bytes
        return ranked + _HOP_US * breadth * _LINKS * dimension


def scan_us(numbers: int) -> float:
    """Microseconds to score so many float32 numbers one after the other."""
    return _SCAN_US * numbers
