"""Maximal marginal relevance: results that are near the query, and not near each other.

Carbonell and Goldstein (1998): the next result is the candidate with the largest

    (1 - diversity) * relevance - diversity * (its largest similarity to a result so far)

Similarity is the score of the metric, so that both terms have one unit: the cosine, the inner
product, or the negated squared distance.
"""

from collections.abc import Iterator

import numpy as np

from core.models import Metric
from core.vectors.arrays import Doubles, Floats


def diverse(
    relevance: Doubles, rows: Floats, k: int, diversity: float, metric: Metric
) -> Iterator[int]:
    """The positions of the results among the candidates, one after the other.

    Args:
        relevance: float64 (n,): how near each candidate is to the query; larger is nearer.
        rows: float32 (n, d): their vectors, prepared.
        k: how many results; fewer come where there are fewer candidates.
        diversity: 0, for the order of relevance, to 1.
        metric: what a similarity is.

    Of candidates that are equal, the first one is taken. Each result takes n x d products.
    """
    value = (1.0 - diversity) * relevance
    nearest = np.full(relevance.shape[0], -np.inf)
    compared: Floats | Doubles = rows
    squares: Doubles | None = None
    if metric == "l2":  # from one of them: far from the origin the expanded square cancels
        compared = rows.astype(np.float64) - rows[:1]
        squares = np.vecdot(compared, compared)
    left = np.ones(relevance.shape[0], dtype=np.bool_)
    for number in range(min(k, relevance.shape[0])):
        marginal = value - diversity * nearest if number else relevance
        best = int(np.argmax(np.where(left, marginal, -np.inf)))
        yield best
        left[best] = False
        similarity = (compared @ compared[best]).astype(np.float64, copy=False)
        if squares is not None:
            similarity = 2.0 * similarity - squares - squares[best]
        np.maximum(nearest, similarity, out=nearest)
