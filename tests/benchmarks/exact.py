"""Recall@10 of answers, held against exact search over all rows."""

from collections.abc import Sequence
from typing import Final

import aiohttp
import numpy as np

from core.vectors.arrays import Floats, prepare
from core.vectors.recall import ground_truth
from tests.benchmarks.published import search

K: Final = 10
QUERIES: Final = 1000
"""Of a measurement."""
_SLACK: Final = 1e-6
"""By which scores computed in another order may differ."""


class Truth:
    """What is right for some queries, by cosine."""

    def __init__(self, ids: Sequence[str], rows: Floats, queries: Floats) -> None:
        """Compares each query (m, d) with each row (n, d)."""
        self._rows = prepare(rows, "cosine")
        self.queries = prepare(queries, "cosine")
        self._place = {name: place for place, name in enumerate(ids)}
        truth = ground_truth(self.queries, self._rows, None, K, "cosine")
        self._least = truth[:, -1].astype(np.float64) - _SLACK

    def recall(self, found: Sequence[Sequence[str]]) -> float:
        """The mean recall@10 of product ids found for each query.

        Raises:
            ValueError: a query was not answered, or a product came twice for it.
        """
        if len(found) != len(self.queries):
            raise ValueError(f"{len(found)} answers to {len(self.queries)} queries")
        hits = 0
        for query, names, least in zip(self.queries, found, self._least, strict=True):
            if len(set(names)) != len(names):
                raise ValueError(f"a product came twice: {names}")
            places = [self._place[name] for name in names[:K]]
            near = self._rows[places].astype(np.float64) @ query.astype(np.float64)
            hits += int((near >= least).sum())
        return hits / (K * len(found))

    async def recall_of(self, url: str, model: str, token: str) -> float:
        """That of a running API."""
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(url, headers=headers) as session:
            found, _ = await search(session, model, self.queries)
        return self.recall(found)
