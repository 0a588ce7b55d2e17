"""Searching by several examples: what a result should be like, and what it should not."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from core.models import Metric
from core.vectors.arrays import Doubles, Floats, Query, prepare, row_scores

_LEAST_NORM: Final = 1e-6
"""Of a mean of unit vectors that has a direction."""


def mean_vector(positive: Sequence[Floats], negative: Sequence[Floats], metric: Metric) -> Floats:
    """float32 (d,): one vector to search for in place of examples.

    The mean of the positive ones, moved away from the mean of the negative ones by as much as it
    is away from it: twice the first less the second. Under cosine each example counts as a unit
    vector. One positive example alone is itself.

    Args:
        positive: float32 (d,) each, checked, at least one.
        negative: the same, or none.
        metric: of the search.
    """
    if len(positive) == 1 and not negative:
        return positive[0]
    mean = _mean(positive, metric)
    if negative:
        mean = 2.0 * mean - _mean(negative, metric)
    if metric == "cosine":  # what is left of examples that cancel each other out is rounding
        mean *= np.sqrt(mean.dot(mean)) > _LEAST_NORM
    with np.errstate(over="ignore"):
        return mean.astype(np.float32)


def penalties(scores: Doubles, rows: Floats, negative: Sequence[Query]) -> Doubles:
    """float64 (n,): how much nearer each row is to a negative example than to every positive one.

    0 where it is not. A score less its penalty falls the further the nearer a row is to a negative
    example, and no row is left out.

    Args:
        scores: float64 (n,): the best score of each row with a positive example.
        rows: float32 (n, d), prepared.
        negative: prepared, at least one.
    """
    worst = np.full(scores.shape[0], -np.inf)
    for example in negative:
        np.maximum(worst, row_scores(example, rows), out=worst)
    return np.maximum(worst - scores, 0.0)


def _mean(vectors: Sequence[Floats], metric: Metric) -> Doubles:
    mean: Doubles = np.mean(prepare(np.stack(vectors), metric), axis=0, dtype=np.float64)
    return mean
