"""Recall@k: rows to hold out, the ground truth, and confidence bounds of a measured recall."""

import math
from typing import Final

import numpy as np

from core.models import Metric
from core.vectors.arrays import Doubles, Floats, Ints
from core.vectors.exact import CandidateSpace, exact_top_k

RECALL_AT: Final = 10
"""The k of the published recall."""
_SEED: Final = 20_250_930
_BASE_ROWS: Final = 65_536
_DEVIATIONS: Final = 2.0
"""Standard deviations below the measured mean that must still reach the target (97.7 %)."""
_SHIFT_SHARE: Final = 0.1
"""Margin for queries unlike the rows, as a share of the gap between the target and 1."""
ZERO_RECALL_MAX: Final = 0.001
"""Share of queries that may find none of the rows that are right."""
ZERO_RECALL_QUERIES: Final = (3_700, 12_000)
"""How many are measured: none of the first may fail, or 5 of the second (`zero_recall_bound`)."""
_ERROR_RATE: Final = 0.025
"""Of each of two measurements: together they are wrong in at most one case of twenty."""


def held_out_rows(rows: int, *, least: int, most: int) -> Ints:
    """Sorted row numbers to hold out: 1 %, within [least, most] and never over a tenth.

    A seeded sample over row numbers, so it does not follow any pattern in the ids.
    """
    count = min(max(rows // 100, least), most, rows // 10)
    sampled = np.random.default_rng(_SEED).choice(rows, size=count, replace=False, shuffle=False)
    return np.sort(sampled).astype(np.int64)


def ground_truth(
    queries: Floats, rows: Floats, counted: Ints | None, k: int, metric: Metric
) -> Floats:
    """float32 (m, min(k, n)): the true best scores of each query, best first, exactly.

    Args:
        queries: float32 (m, d), prepared.
        rows: float32 (n, d), prepared; may be mapped from a file.
        counted: the row numbers to search, None for all of them.
        k: how many.
        metric: what a score is.
    """
    count = rows.shape[0] if counted is None else counted.shape[0]
    top = np.empty((queries.shape[0], 0), dtype=np.float32)
    for start in range(0, count, _BASE_ROWS):
        part = slice(start, start + _BASE_ROWS)
        block = rows[part] if counted is None else rows[counted[part]]
        _, scores = exact_top_k(queries, block, k, CandidateSpace(block, metric))
        top = -np.sort(-np.concatenate((top, scores), axis=1), axis=1)[:, :k]
    return top


def recalls(scores: Floats, truth: Floats) -> Doubles:
    """float64 (m,): the recall of each query.

    A result counts when it scores at least as high as the last of the true best: among
    equal scores any row is right.

    Args:
        scores: final scores of the results (m, any), -inf where there is none.
        truth: true best scores (m, k), best first.
    """
    k = truth.shape[1]
    top = -np.sort(-scores, axis=1)[:, :k]
    hits: Doubles = (top >= truth[:, -1:]).sum(axis=1) / k
    return hits


def recall_lower_bound(values: Doubles) -> float:
    """A lower confidence bound of the mean recall over all queries like these."""
    return float(values.mean() - _DEVIATIONS * values.std() / np.sqrt(values.shape[0]))


def reaches(values: Doubles, target: float) -> bool:
    """Whether recalls measured on a sample are enough to promise the target for other queries.

    No sample is enough for a recall of 1: only a scan of every row is.
    """
    return target < 1.0 and recall_lower_bound(values) >= target + _SHIFT_SHARE * (1.0 - target)


def zero_recall_bound(count: int, queries: int) -> float:
    """The upper confidence bound of the share of failures, after `count` of `queries` failed.

    The exact upper bound of a binomial share by Clopper and Pearson (1934), one-sided, found by
    bisection.
    """
    if count >= queries:
        return 1.0
    ways = [
        math.lgamma(queries + 1) - math.lgamma(i + 1) - math.lgamma(queries - i + 1)
        for i in range(count + 1)
    ]
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        logs = (math.log(share), math.log1p(-share))
        chance = sum(
            math.exp(w + i * logs[0] + (queries - i) * logs[1]) for i, w in enumerate(ways)
        )
        low, high = (share, high) if chance > _ERROR_RATE else (low, share)
    return high
