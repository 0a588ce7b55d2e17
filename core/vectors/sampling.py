"""The queries that an index is measured with, and what is right for each of them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.models import Metric
from core.vectors.arrays import Doubles, Floats, Ints, prepare
from core.vectors.copies import similar_rows
from core.vectors.near_copies import MEMBERS_MIN, spread
from core.vectors.parameters import IndexLimits
from core.vectors.recall import RECALL_AT, ground_truth, held_out, surely

WIDE_AT: Final = 100
"""The second k that search parameters are tuned for; those between are on a line."""
WIDE_QUERIES: Final = 250
"""Queries that the second k is tuned with, which promises nothing."""
_QUERIES_MIN: Final = 30
"""Fewer held-out rows than this measure nothing: all rows ask instead."""
_DENSE_SHARE: Final = 0.25
"""A row whose tenth neighbour is closer than this share of the usual distance is in a crowd."""
_NOISE_SHARE: Final = 0.25
"""How far a query with noise is from the row that it was made of, as such a share."""
_GROUPS_MAX: Final = 1000
"""Groups of copies of which one row asks."""
_SEED: Final = 31


class Sample:
    """Queries that are no rows of the index yet, and no near copies of any.

    Half of all rows may be near copies: each group of them counts as one row here.
    """

    def __init__(
        self, rows: Floats, metric: Metric, limits: IndexLimits, radius_share: float
    ) -> None:
        groups = similar_rows(rows, metric, radius_share)
        total = groups.first.shape[0]
        held = held_out(total, least=limits.held_out_min, most=limits.held_out_max)
        # Whether a large group can be reached is measured while it is in the index.
        held = held[groups.sizes[held] < MEMBERS_MIN]
        self.metric: Metric = metric
        self.method = "rows held out of the index, added last"
        if held.shape[0] < _QUERIES_MIN:
            self.method = "the rows themselves, too few to hold any out"
            self.queries = np.ascontiguousarray(rows[groups.first])
            held = np.empty(0, dtype=np.int64)
        else:
            self.queries = np.ascontiguousarray(rows[groups.first[held]])
        stays = np.ones(total, dtype=np.bool_)
        stays[held] = False
        order = np.concatenate((np.flatnonzero(stays), held))
        self.kept: Ints = groups.first[stays]
        """Row numbers, of the positions that the index has while it is measured."""
        self.added_last: Ints = groups.first[held]
        self.order: NDArray[np.int32] = groups.first[order].astype(np.int32)
        self.members = None if groups.trivial else groups.members(order)
        self.near_copies = groups.near_copies
        self.near_copies_max = groups.near_copies_max
        self._rows = rows
        self._counted = self.kept if groups.radii is None else np.flatnonzero(stays[groups.of])
        self._spread = spread(rows, groups.first, metric)
        self.wide_truth = self._truth(self.queries[:WIDE_QUERIES], WIDE_AT)
        """float32 (up to 250, 100): the best scores of the first queries."""
        self.truth = np.concatenate(
            (self.wide_truth[:, :RECALL_AT], self._truth(self.queries[WIDE_QUERIES:], RECALL_AT))
        )
        """float32 (m, 10): the best scores of each query."""
        self._apart = self._far_from_rows()
        self._asked: tuple[Floats, Floats] | None = None
        self._among: tuple[Floats, Floats, Ints] | None = None

    def _truth(self, queries: Floats, k: int) -> Floats:
        """The best scores over the rows that can be found while the index is measured."""
        return ground_truth(queries, self._rows, self._counted, k, self.metric)

    def _far_from_rows(self) -> NDArray[np.bool_]:
        """Bool (m,): the queries that are in no crowd of rows; all where too few are."""
        tenth = self.truth[:, -1].astype(np.float64)
        if self.metric == "ip":  # a product tells no distance
            truth = ground_truth(self.queries, self._rows, self._counted, RECALL_AT, "l2")
            tenth = truth[:, -1].astype(np.float64)
        squares = 2.0 - 2.0 * tenth if self.metric == "cosine" else -tenth
        apart: NDArray[np.bool_] = squares >= (_DENSE_SHARE * self._spread) ** 2
        return apart if np.count_nonzero(apart) >= _QUERIES_MIN else np.ones_like(apart)

    def judged(self, recalls: Doubles) -> Doubles:
        """The recalls that are promised: of all queries, or of those in no crowd if it is lower.

        What is in a crowd finds it easily. A new product need not be in one.
        """
        apart = recalls[self._apart[: recalls.shape[0]]]
        return recalls if apart.shape[0] < _QUERIES_MIN else min(recalls, apart, key=surely)

    def asked(self, count: int) -> tuple[Floats, Floats]:
        """At least `count` queries and the best scores of each: float32 (m, d) and (m, 10).

        First the held-out rows in no crowd, then these with noise, which are more than there are
        rows to hold out. More of them begin with the same.
        """
        if self._asked is None:
            self._asked = self.queries[self._apart], self.truth[self._apart]
        queries, truth = self._asked
        missing = count - queries.shape[0]
        if missing > 0:
            more = self._with_noise(missing, queries.shape[0])
            truth = np.concatenate((truth, self._truth(more, RECALL_AT)))
            self._asked = np.concatenate((queries, more)), truth
        return self._asked

    def among_copies(self) -> tuple[Floats, Floats, Ints]:
        """A row of each of the largest groups, equal or near, its best scores, and their sizes.

        All rows of a group are behind one: where that is out of reach, all are lost.
        """
        if self._among is None:
            queries, sizes = self._rows[:0], np.empty(0, dtype=np.int64)
            if self.members is not None:
                starts = self.members.starts[: self.kept.shape[0] + 1]
                sizes = np.diff(starts)
                largest = np.argsort(-sizes, kind="stable")[:_GROUPS_MAX]
                largest = largest[sizes[largest] >= MEMBERS_MIN]
                sizes = sizes[largest]
                queries = self._rows[self.members.rows[starts[largest + 1] - 1]]
            self._among = queries, self._truth(queries, RECALL_AT), sizes
        return self._among

    def _with_noise(self, count: int, start: int) -> Floats:
        """float32 (count, d), prepared: held-out rows with noise shaped like the queries."""
        rows = self.queries[self._apart]
        shape = rows.std(axis=0, dtype=np.float64)
        length = float(np.sqrt(shape @ shape))
        if length > 0:
            shape *= _NOISE_SHARE * self._spread / length
        random = np.random.default_rng((_SEED, start))
        noise = random.standard_normal((count, rows.shape[1])) * shape
        made = rows[np.arange(start, start + count) % rows.shape[0]] + noise
        return prepare(made.astype(np.float32), self.metric)
