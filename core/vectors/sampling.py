"""The queries that an index is measured with, and their ground truth."""

from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.models import Metric
from core.vectors.arrays import Doubles, Floats, Ints, prepare
from core.vectors.copies import similar_rows
from core.vectors.near_copies import MEMBERS_MIN, spread
from core.vectors.parameters import IndexLimits
from core.vectors.recall import RECALL_AT, ground_truth, held_out_rows, recall_lower_bound

WIDE_AT: Final = 100
"""The second k that search parameters are tuned for; between the two they are interpolated."""
WIDE_QUERIES: Final = 250
"""Queries that the second k is tuned with, for which no recall is promised."""
_QUERIES_MIN: Final = 30
"""With fewer held-out rows, all rows are the queries instead."""
_DENSE_SHARE: Final = 0.25
"""A row is in a dense region if its tenth neighbour is within this share of the usual distance."""
_NOISE_SHARE: Final = 0.25
"""The distance of a query with noise from its row, as such a share."""
_GROUPS_MAX: Final = 1000
"""Groups of copies of which one row is a query."""
_SEED: Final = 31


class QuerySample:
    """Queries that are neither rows of the index yet nor near copies of any.

    Half of all rows may be near copies: each group of them counts as one row here.
    """

    def __init__(
        self, rows: Floats, metric: Metric, limits: IndexLimits, radius_share: float
    ) -> None:
        groups = similar_rows(rows, metric, radius_share)
        total = groups.first.shape[0]
        withheld = held_out_rows(total, least=limits.held_out_min, most=limits.held_out_max)
        # Whether a large group can be reached is measured while it is in the index.
        withheld = withheld[groups.sizes[withheld] < MEMBERS_MIN]
        self.metric: Metric = metric
        self.method = "rows held out of the index, added last"
        if withheld.shape[0] < _QUERIES_MIN:
            self.method = "the rows themselves, too few to hold any out"
            self.queries = np.ascontiguousarray(rows[groups.first])
            withheld = np.empty(0, dtype=np.int64)
        else:
            self.queries = np.ascontiguousarray(rows[groups.first[withheld]])
        remains = np.ones(total, dtype=np.bool_)
        remains[withheld] = False
        order = np.concatenate((np.flatnonzero(remains), withheld))
        self.indexed: Ints = groups.first[remains]
        """The row at each position of the index while it is measured."""
        self.held_out: Ints = groups.first[withheld]
        self.order: NDArray[np.int32] = groups.first[order].astype(np.int32)
        self.members = None if groups.trivial else groups.members(order)
        self.near_copies = groups.near_copies
        self.near_copies_max = groups.near_copies_max
        self._rows = rows
        self.counted = self.indexed if groups.radii is None else np.flatnonzero(remains[groups.of])
        """The rows that can be found while the index is measured."""
        self._spread = spread(rows, groups.first, metric)
        self.wide_truth = self._truth(self.queries[:WIDE_QUERIES], WIDE_AT)
        """float32 (up to 250, 100): the best scores of the first queries."""
        self.truth = np.concatenate(
            (self.wide_truth[:, :RECALL_AT], self._truth(self.queries[WIDE_QUERIES:], RECALL_AT))
        )
        """float32 (m, 10): the best scores of each query."""
        self._sparse = self._in_sparse_regions()
        self._new_queries: tuple[Floats, Floats] | None = None

    def _truth(self, queries: Floats, k: int) -> Floats:
        """The best scores over the rows that can be found while the index is measured."""
        return ground_truth(queries, self._rows, self.counted, k, self.metric)

    def _in_sparse_regions(self) -> NDArray[np.bool_]:
        """Bool (m,): the queries outside dense regions of rows; all where too few are."""
        tenth = self.truth[:, -1].astype(np.float64)
        if self.metric == "ip":  # a product is no distance
            truth = ground_truth(self.queries, self._rows, self.counted, RECALL_AT, "l2")
            tenth = truth[:, -1].astype(np.float64)
        squares = 2.0 - 2.0 * tenth if self.metric == "cosine" else -tenth
        sparse: NDArray[np.bool_] = squares >= (_DENSE_SHARE * self._spread) ** 2
        return sparse if np.count_nonzero(sparse) >= _QUERIES_MIN else np.ones_like(sparse)

    def promised(self, recalls: Doubles) -> Doubles:
        """The recalls to promise: of all queries, or of those in sparse regions if it is lower.

        Queries in a dense region find it easily. A new product need not be in one.
        """
        sparse = recalls[self._sparse[: recalls.shape[0]]]
        if sparse.shape[0] < _QUERIES_MIN:
            return recalls
        return min(recalls, sparse, key=recall_lower_bound)

    def new_queries(self, count: int) -> tuple[Floats, Floats]:
        """At least `count` queries and the best scores of each: float32 (m, d) and (m, 10).

        First the held-out rows in sparse regions, then copies of them with noise. A larger number
        starts with the same queries.
        """
        if self._new_queries is None:
            self._new_queries = self.queries[self._sparse], self.truth[self._sparse]
        queries, truth = self._new_queries
        missing = count - queries.shape[0]
        if missing > 0:
            more = self._with_noise(missing, queries.shape[0])
            truth = np.concatenate((truth, self._truth(more, RECALL_AT)))
            self._new_queries = np.concatenate((queries, more)), truth
        return self._new_queries

    @cached_property
    def copy_queries(self) -> tuple[Floats, Floats, Ints]:
        """A row of each of the largest groups, equal or near, its best scores, and their sizes.

        One position stands for all rows of a group: if it is not found, none is.
        """
        queries, sizes = self._rows[:0], np.empty(0, dtype=np.int64)
        if self.members is not None:
            starts = self.members.starts[: self.indexed.shape[0] + 1]
            sizes = np.diff(starts)
            largest = np.argsort(-sizes, kind="stable")[:_GROUPS_MAX]
            largest = largest[sizes[largest] >= MEMBERS_MIN]
            sizes = sizes[largest]
            queries = self._rows[self.members.rows[starts[largest + 1] - 1]]
        return queries, self._truth(queries, RECALL_AT), sizes

    def _with_noise(self, count: int, start: int) -> Floats:
        """float32 (count, d), prepared: held-out rows with noise shaped like the queries."""
        rows = self.queries[self._sparse]
        shape = rows.std(axis=0, dtype=np.float64)
        length = float(np.sqrt(shape @ shape))
        if length > 0:
            shape *= _NOISE_SHARE * self._spread / length
        random = np.random.default_rng((_SEED, start))
        noise = random.standard_normal((count, rows.shape[1])) * shape
        made = rows[np.arange(start, start + count) % rows.shape[0]] + noise
        return prepare(made.astype(np.float32), self.metric)
