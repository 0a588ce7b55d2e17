"""The similarity matrix: the k nearest other rows of every row.

Exact by fixed blocks up to a number of rows: the same bytes for the same rows, always. Above it the
index makes it, and its recall is measured on a sample.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.models import Metric, Progress, ProgressCallback
from core.vectors.all_pairs import nearest_of_all
from core.vectors.arrays import Floats, Ints, pair_scores, row_blocks
from core.vectors.copies import Groups, equal_rows
from core.vectors.exact import CandidateSpace
from core.vectors.recall import ground_truth, recalls
from core.vectors.search import Searcher

_SAMPLE_ROWS: Final = 1000
_INDEX_QUERY_ROWS: Final = 1024
_GROUPS_AT_ONCE: Final = 4096
_SEED: Final = 7


class Matrix(msgspec.Struct, frozen=True):
    """The k nearest other rows of each row, by (-score, row number)."""

    neighbors: NDArray[np.int32]
    """(n, k) row numbers, -1 where there are fewer than k others."""
    scores: Floats
    """float32 (n, k), larger is nearer, -inf beside a -1."""
    exact: bool
    recall: float | None = None
    """Measured at k where the index made it; None where it is exact."""


def exact_matrix(
    rows: Floats, metric: Metric, k: int, progress: ProgressCallback, threads: int = 1
) -> Matrix:
    """The matrix of prepared rows (n, d), n at least 1, exactly, on so many threads.

    Equal rows are compared once, as one group: thousands of copies of a row tie with each other,
    and no margin of candidates would be enough for them.
    """
    total = rows.shape[0]
    groups = equal_rows(rows)
    distinct = rows if groups.trivial else rows[groups.first]
    space = CandidateSpace(distinct, metric)
    found, found_scores = nearest_of_all(
        distinct,
        k + 1,
        space,
        threads,
        lambda done: progress(Progress("matrix", done * total // distinct.shape[0], total)),
    )
    top, top_scores = _of_rows(groups, found, found_scores, k + 1)
    neighbors = np.empty((total, k), dtype=np.int32)
    scores = np.empty((total, k), dtype=np.float32)
    for block in row_blocks(total, k + 1):
        own = np.arange(block.start, block.stop)
        group = groups.of[block]
        neighbors[block], scores[block] = _without_self(own, top[group], top_scores[group])
    return Matrix(neighbors=neighbors, scores=scores, exact=True)


def index_matrix(rows: Floats, searcher: Searcher, k: int, progress: ProgressCallback) -> Matrix:
    """The matrix as the index finds it, with its recall@k on a sample of rows."""
    total = rows.shape[0]
    neighbors = np.empty((total, k), dtype=np.int32)
    scores = np.empty((total, k), dtype=np.float32)
    for start in range(0, total, _INDEX_QUERY_ROWS):
        own = np.arange(start, min(total, start + _INDEX_QUERY_ROWS))
        row_ids, found_scores = searcher.search(rows[own], k + 1)
        neighbors[own], scores[own] = _without_self(own, row_ids.astype(np.int32), found_scores)
        progress(Progress("matrix", int(own[-1]) + 1, total))
    recall = _sampled_recall(rows, searcher.metric, scores)
    return Matrix(neighbors=neighbors, scores=scores, exact=False, recall=recall)


def _sampled_recall(rows: Floats, metric: Metric, scores: Floats) -> float:
    k = min(scores.shape[1], rows.shape[0] - 1)
    if k <= 0:
        return 1.0
    sampled = np.random.default_rng(_SEED).permutation(rows.shape[0])[:_SAMPLE_ROWS]
    sample = np.sort(sampled).astype(np.int64)
    queries = rows[sample]
    truth = ground_truth(queries, rows, None, k + 1, metric)
    own = pair_scores(queries, queries, metric)
    drop = truth == own[:, None]
    drop[:, -1] |= ~drop.any(axis=1)
    drop &= np.cumsum(drop, axis=1) == 1
    truth = truth[~drop].reshape(-1, k)
    return float(recalls(scores[sample], truth).mean())


def _of_rows(
    groups: Groups, found: NDArray[np.int32], scores: Floats, width: int
) -> tuple[NDArray[np.int32], Floats]:
    """The best rows of each group, from its best groups (groups, any): both (groups, width)."""
    if groups.trivial and found.shape[1] == width:
        return found, scores
    top = np.full((found.shape[0], width), -1, dtype=np.int32)
    top_scores = np.full((found.shape[0], width), -np.inf, dtype=np.float32)
    for start in range(0, found.shape[0], _GROUPS_AT_ONCE):
        block = slice(start, start + _GROUPS_AT_ONCE)
        rows, best = found[block].astype(np.int64), scores[block]
        if not groups.trivial:
            rows, best = groups.expand(rows, best, width)
        top[block, : rows.shape[1]] = rows
        top_scores[block, : best.shape[1]] = best
    return top, top_scores


def _without_self(
    own: Ints, found: NDArray[np.int32], scores: Floats
) -> tuple[NDArray[np.int32], Floats]:
    """Lines (m, k + 1) less the row itself, or less their last entry where it is not among them."""
    drop = found == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = (found.shape[0], found.shape[1] - 1)
    return found[~drop].reshape(shape), scores[~drop].reshape(shape)
