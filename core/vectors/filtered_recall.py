"""The recall of filtered searches by the share of rows that they allow, as measured in a build.

Filters are drawn at random, so they have nothing to do with the vectors. Where the number of rows
decides for a scan, nothing is measured: every allowed row is scored.
"""

from typing import Final

import numpy as np

from core.vectors.filtered import Allowed, FilteredSearcher
from core.vectors.parameters import RecallBand
from core.vectors.recall import RECALL_AT, ground_truth, recalls
from core.vectors.sampling import QuerySample
from core.vectors.search import Searcher

SHARES_MAX: Final = (0.001, 0.01, 0.1, 0.5, 1.0)
"""Of the bands."""
_SHARE_MIN: Final = 0.0001
_FILTERS: Final = 4
"""In a band, of shares that grow by the same factor."""
_QUERIES: Final = 16
"""With each filter."""
_SEED: Final = 41


def recall_bands(searcher: Searcher, sample: QuerySample) -> tuple[RecallBand, ...]:
    """The recall of each band, ascending.

    Args:
        searcher: of the index before the held-out rows are added.
        sample: its queries, and the rows that they can find.
    """
    random = np.random.default_rng(_SEED)
    filtered = FilteredSearcher(searcher)
    bands = []
    for low, high in zip((_SHARE_MIN, *SHARES_MAX), SHARES_MAX, strict=False):
        steps = (np.arange(_FILTERS) + 0.5) / _FILTERS
        found = [
            _recalls(filtered, sample, float(share), random)
            for share in low * (high / low) ** steps
        ]
        measured = [recall for each in found for recall in each]
        exact = _QUERIES * sum(not each for each in found)
        mean = (sum(measured) + exact) / (len(measured) + exact)
        bands.append(RecallBand(high, mean, len(measured)))
    return tuple(bands)


def _recalls(
    filtered: FilteredSearcher, sample: QuerySample, share: float, random: np.random.Generator
) -> list[float]:
    """The recall of each query under one filter; empty where it is a scan."""
    count = max(1, round(share * sample.counted.shape[0]))
    if filtered.plans(count, RECALL_AT) == ("scan",):
        return []
    rows = random.choice(sample.counted, count, replace=False)
    mask = np.zeros(filtered.rows.shape[0], dtype=np.bool_)
    mask[rows] = True
    allowed = Allowed(mask)
    chosen = random.choice(sample.queries.shape[0], min(_QUERIES, sample.queries.shape[0]), False)
    queries = sample.queries[np.sort(chosen)]
    truth = ground_truth(queries, filtered.rows, allowed.rows, RECALL_AT, sample.metric)
    scores = np.full((queries.shape[0], RECALL_AT), -np.inf, dtype=np.float32)
    for line, query in zip(scores, queries, strict=True):
        found = filtered.search_one(query, RECALL_AT, allowed).scores
        line[: found.shape[0]] = found
    measured: list[float] = recalls(scores, truth).tolist()
    return measured
