"""What a search finds."""

from collections.abc import Iterable
from typing import Self

import msgspec


class Hits(msgspec.Struct, frozen=True, gc=False):
    """The nearest products of one vector, by (-score, product id)."""

    product_ids: list[str]
    scores: list[float]

    @classmethod
    def ranked(cls, pairs: Iterable[tuple[float, str]], k: int) -> Self:
        """The best k of negated scores with their product ids, in any order.

        Text compares by code point, which is the order of its UTF-8, and so that of index rows.
        """
        best = sorted(pairs)[:k]
        return cls([product_id for _, product_id in best], [0.0 - score for score, _ in best])

    def merged(self, other: "Hits", k: int) -> "Hits":
        """The best k of both: those that one index of all rows would find."""
        if not other.product_ids:
            return self
        scores = [-score for score in (*self.scores, *other.scores)]
        ids = (*self.product_ids, *other.product_ids)
        return Hits.ranked(zip(scores, ids, strict=True), k)
