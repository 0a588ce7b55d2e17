"""Exact nearest rows, in blocks: the ground truth of recall, and the rows of the matrix.

Fast float32 products find the candidates, float64 scores rank them.
"""

import math
from typing import Any, Final

import faiss
import numpy as np

from core.models import Metric
from core.vectors.arrays import Doubles, Floats, Ints, pair_scores, row_blocks, squared_norms, top_k

QUERY_ROWS: Final = 4096
"""Queries a call of FAISS, which is also the block of its own matrix product."""
_MARGIN: Final = 27
"""Candidates beyond k: near-duplicates are ordered differently by float32 and float64."""
_MARGIN_WIDE: Final = 1000
"""For queries whose top k is in doubt with the first margin."""
_FLOAT32_STEP: Final = 2.0**-24
_FLOAT64_STEP: Final = 2.0**-53
_PRODUCT_NUMBERS: Final = 1 << 23
"""Float64 products kept at a time."""
_RESCORED_NUMBERS: Final = 1 << 16
"""Numbers of rows whose float64 copies stay within a core's own cache."""


class CandidateSpace:
    """Transforms rows for the float32 search for candidates, which keeps the order of scores.

    Under `l2` rows are shifted by their mean, as the expanded square cancels far from the origin.
    Under `l2` and `ip` they are scaled by a power of two where squares leave float32's range.
    """

    def __init__(self, rows: Floats, metric: Metric) -> None:
        self.metric = metric
        self.faiss_metric = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self._shift: Floats | None = None
        self._scale = 1.0
        largest = 1.0
        if metric == "l2":
            mean: Doubles = np.mean(rows, axis=0, dtype=np.float64)
            self._shift = mean.astype(np.float32)
        if metric != "cosine":
            largest = 0.0
            for block in row_blocks(*rows.shape):
                moved = rows[block] if self._shift is None else rows[block] - self._shift
                largest = max(largest, float(squared_norms(moved).max(initial=0.0)))
            largest = math.sqrt(largest)
            if largest and not 1e-6 < largest < 1e6:  # noqa: PLR2004 - squares within 1e±12
                self._scale = 2.0 ** -round(float(np.log2(largest)))
        # A product of matrices may add up the d products of two rows one after the other.
        rounding = 2 * _FLOAT32_STEP * (rows.shape[1] / 2 + 8)
        self.uncertainty = rounding * (2 * largest * self._scale) ** 2
        """The largest error of the difference of two float32 scores."""

    def transform(self, rows: Floats) -> Floats:
        """float32 (n, d), C-contiguous; not copied where nothing has to change."""
        if self._shift is not None:
            rows = (rows - self._shift).astype(np.float32, copy=False)
        if self._scale != 1.0:
            rows = rows * np.float32(self._scale)
        return np.ascontiguousarray(rows)

    def nearest(self, queries: Floats, rows: Floats, k: int) -> tuple[Ints, Floats]:
        """Row numbers and float32 scores, both (m, k), of transformed queries and rows."""
        scores: Any
        scores, row_ids = faiss.knn(queries, rows, k, metric=self.faiss_metric)
        return row_ids, (-scores if self.metric == "l2" else scores)


def exact_top_k(
    queries: Floats, rows: Floats, k: int, space: CandidateSpace
) -> tuple[Ints, Floats]:
    """The k best rows of each query, by (-score, row number).

    Args:
        queries: float32 (m, d), prepared.
        rows: float32 (n, d), prepared, n at least 1.
        k: how many, at most n.
        space: of these rows.

    Returns:
        Row numbers int64 and scores float32, both (m, min(k, n)).
    """
    transformed = space.transform(rows)
    k = min(k, rows.shape[0])
    row_ids = np.empty((queries.shape[0], k), dtype=np.int64)
    scores = np.empty((queries.shape[0], k), dtype=np.float32)
    for start in range(0, queries.shape[0], QUERY_ROWS):
        block = slice(start, start + QUERY_ROWS)
        row_ids[block], scores[block], doubtful = _rescored_top_k(
            queries[block], rows, k, space, transformed, _MARGIN
        )
        if doubtful.size:
            again = start + doubtful
            row_ids[again], scores[again], doubtful = _rescored_top_k(
                queries[again], rows, k, space, transformed, _MARGIN_WIDE
            )
            again = again[doubtful]
            if again.size:
                row_ids[again], scores[again] = float64_top_k(queries[again], rows, k, space.metric)
    return row_ids, scores


def float64_top_k(queries: Floats, rows: Floats, k: int, metric: Metric) -> tuple[Ints, Floats]:
    """The same as `exact_top_k`, by float64 products with every row.

    For queries with a crowd of near copies: up to 64 MiB of products are kept at a time.

    A product gives the final score of a row unless the bounds of its rounding error round to
    different float32: such rows are scored one by one, if they may be among the best.
    """
    m, (n, d) = queries.shape[0], rows.shape
    row_ids = np.empty((m, k), dtype=np.int64)
    scores = np.empty((m, k), dtype=np.float32)
    squares = squared_norms(rows)
    step = max(1, _PRODUCT_NUMBERS // n)
    for start in range(0, m, step):
        part = queries[start : start + step]
        exact = part.astype(np.float64)
        own = np.vecdot(exact, exact)
        products = np.empty((part.shape[0], n))
        for block in row_blocks(n, d):
            np.matmul(exact, rows[block].T.astype(np.float64), out=products[:, block])
        if metric == "cosine":
            products /= np.sqrt(np.maximum(own[:, None] * squares, np.finfo(np.float64).tiny))
            doubts = np.ones(part.shape[0])
        elif metric == "ip":
            doubts = np.sqrt(own * squares.max())
        else:
            products *= 2
            products -= squares + own[:, None]
            doubts = (np.sqrt(own) + np.sqrt(squares.max())) ** 2
        doubts *= 4 * (d + 8) * _FLOAT64_STEP
        for line, (query, product, doubt) in enumerate(zip(part, products, doubts, strict=True)):
            low = (product - doubt).astype(np.float32)
            high = (product + doubt).astype(np.float32)
            contenders = np.flatnonzero(high >= np.partition(low, n - k)[n - k])
            final = low[contenders]
            unsure = final != high[contenders]
            final[unsure] = pair_scores(query, rows[contenders[unsure]], metric)
            top = top_k(final, k, contenders)
            row_ids[start + line], scores[start + line] = contenders[top], final[top]
    return row_ids, scores


def _rescored_top_k(
    queries: Floats, rows: Floats, k: int, space: CandidateSpace, transformed: Floats, margin: int
) -> tuple[Ints, Floats, Ints]:
    """The same for one block, and the queries that may have a better row outside the candidates."""
    width = min(rows.shape[0], k + margin)
    candidates, rough = space.nearest(space.transform(queries), transformed, width)
    exact = rescore(queries, rows, candidates, space.metric)
    candidates, scores = top_k_per_query(candidates, exact, k)
    if width == rows.shape[0]:
        return candidates, scores, np.empty(0, dtype=np.int64)
    # Float32 scores are compared with each other, the last candidate with the k-th.
    gap = np.sort(-rough, axis=1)[:, [k - 1, width - 1]]
    doubtful = np.flatnonzero(gap[:, 1] - gap[:, 0] <= space.uncertainty)
    return candidates, scores, doubtful


def rescore(queries: Floats, rows: Floats, candidates: Ints, metric: Metric) -> Floats:
    """float32 (m, c): the final score of each query with each of its candidates.

    A candidate of -1 has -inf.
    """
    m, width = candidates.shape
    result = np.empty((m, width), dtype=np.float32)
    step = max(1, _RESCORED_NUMBERS // max(1, width * rows.shape[1]))
    for start in range(0, m, step):
        block = slice(start, min(m, start + step))
        found = rows[np.maximum(candidates[block], 0)]
        result[block] = pair_scores(queries[block, None], found, metric)
    result[candidates < 0] = -np.inf
    return result


class KnownScores:
    """The final scores of some queries with rows, each computed when it is first asked for.

    Args:
        queries: float32 (m, d), prepared.
        rows: float32 (n, d), prepared.
        metric: what a score is.
    """

    def __init__(self, queries: Floats, rows: Floats, metric: Metric) -> None:
        self._queries = queries
        self._rows = rows
        self._metric: Metric = metric
        self._pairs: Ints = np.empty(0, dtype=np.int64)
        """Sorted: the number of the query times n, plus the row."""
        self._scores: Floats = np.empty(0, dtype=np.float32)

    def rescore(self, candidates: Ints) -> Floats:
        """The same as `rescore` of the queries with candidates (m, c), no row twice in a line."""
        total = self._rows.shape[0]
        asked = np.arange(candidates.shape[0])[:, None] * total + candidates
        there = candidates >= 0
        pairs = asked[there]
        at = np.searchsorted(self._pairs, pairs)
        known = at < self._pairs.shape[0]
        known[known] = self._pairs[at[known]] == pairs[known]
        scores = np.empty(pairs.shape, dtype=np.float32)
        scores[known] = self._scores[at[known]]
        missing = pairs[~known]
        scores[~known] = found = self._computed(missing)
        self._pairs = np.concatenate((self._pairs, missing))
        order = np.argsort(self._pairs)
        self._pairs = self._pairs[order]
        self._scores = np.concatenate((self._scores, found))[order]
        result = np.full(candidates.shape, -np.inf, dtype=np.float32)
        result[there] = scores
        return result

    def _computed(self, pairs: Ints) -> Floats:
        result = np.empty(pairs.shape, dtype=np.float32)
        queries, rows = np.divmod(pairs, self._rows.shape[0])
        step = max(1, _RESCORED_NUMBERS // self._rows.shape[1])
        for start in range(0, pairs.shape[0], step):
            part = slice(start, start + step)
            result[part] = pair_scores(
                self._queries[queries[part]], self._rows[rows[part]], self._metric
            )
        return result


def top_k_per_query(rows: Ints, scores: Floats, k: int) -> tuple[Ints, Floats]:
    """The first k of each query, by (-score, row number). Both (m, k)."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
