"""Searching one version: candidates from FAISS, final scores from the float32 rows.

Any number of threads may search one `Searcher`: a search changes nothing but two caches, each by
one assignment.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.models import Metric
from core.vectors.arrays import (
    Floats,
    Ints,
    Query,
    prepare,
    prepare_one,
    row_scores,
    squared_norms,
    top_k,
)
from core.vectors.copies import Members
from core.vectors.exact import rescore, top_k_per_query
from core.vectors.families import search_parameters, stored_rows, swig_ptr
from core.vectors.parameters import IndexInfo, Layout, effort_for

_SCAN_BYTES: Final = 64 << 20
"""Memory for the products of one step of an exact scan over many queries."""
_SCAN_RATIO: Final = 64
"""An exact scan is cheaper than a search of a breadth above 1/64 of the rows (measured)."""
_RERANK_RATIO: Final = 8
"""Likewise where more than an eighth of the rows would be ranked again."""
_SLACK: Final = 8
"""Candidates beyond k at first where rows are excluded, or two for each row if that is less."""
_FLOAT32_STEP: Final = 2.0**-24


class SearchPlan(msgspec.Struct, frozen=True):
    """How a number of rows is searched for."""

    candidates: int
    parameters: Any
    """FAISS's, for one call; never changed."""
    scan: bool
    """Whether to score every row instead."""


class Exclusion:
    """Rows left out of a search: made once, used by any number of searches."""

    __slots__ = ("_few", "_mask", "count")

    def __init__(self, total: int, rows: Ints) -> None:
        """Leaves out rows (any,), in any order, of so many in all."""
        self._mask: NDArray[np.bool_] | None = None
        self._few: Ints | None = None
        """Further rows, each once: too few to copy the mask for them."""
        self.count = 1
        """How many rows are left out."""
        if rows.shape[0] == 1:
            self._few = rows
        else:
            self._mask = np.zeros(total, dtype=np.bool_)
            self._mask[rows] = True
            self.count = int(np.count_nonzero(self._mask))

    @classmethod
    def extended(cls, base: Self | None, total: int, rows: Sequence[int]) -> Self | None:
        """What a request leaves out besides what is left out anyway; None for nothing."""
        if not rows:
            return base
        more = np.array(rows, dtype=np.int64)
        return cls(total, more) if base is None else base.with_rows(more)

    def with_rows(self, rows: Ints) -> Self:
        """These and a few more (any,), without copying the mask of the first ones."""
        other = object.__new__(type(self))
        new = rows[~self.contains(rows)]
        new = new if new.shape[0] <= 1 else np.unique(new)
        other._mask = self._mask
        other._few = new if self._few is None else np.concatenate((self._few, new))
        other.count = self.count + new.shape[0]
        return other

    def contains(self, rows: Ints) -> NDArray[np.bool_]:
        """Bool of the shape of `rows`: which of them are left out."""
        if self._mask is None:
            return self._among_few(rows)
        contained: NDArray[np.bool_] = self._mask[rows]
        if self._few is not None:
            contained |= self._among_few(rows)
        return contained

    def _among_few(self, rows: Ints) -> NDArray[np.bool_]:
        few = self._few
        if few is None:
            return np.zeros(rows.shape, dtype=np.bool_)
        found: NDArray[np.bool_] = rows == few if few.shape[0] == 1 else np.isin(rows, few)
        return found

    def __contains__(self, row: int) -> bool:
        return (self._mask is not None and bool(self._mask[row])) or (
            self._few is not None and row in self._few
        )

    def mask(self, scores: Floats) -> None:
        """Sets the scores (n,) of the rows left out to -inf."""
        self._set(scores, -np.inf)

    def clear(self, rows: NDArray[np.bool_]) -> None:
        """Takes the rows left out from a set of rows, bool (n,)."""
        self._set(rows, value=False)

    def _set(self, values: NDArray[Any], value: float) -> None:
        if self._mask is not None:
            values[self._mask] = value
        if self._few is not None:
            values[self._few] = value


class Searcher:
    """One index with its rows."""

    def __init__(
        self,
        rows: Floats,
        metric: Metric,
        info: IndexInfo,
        index: Any = None,
        order: NDArray[np.int32] | None = None,
        members: Members | None = None,
    ) -> None:
        """Takes everything as it is, and copies nothing.

        Args:
            rows: float32 (n, d), prepared; may be mapped.
            metric: what a score is.
            info: of this index.
            index: the FAISS index; None for the family exact.
            order: int32 (positions,), the row of each position in the index.
            members: the rows of each position, where some are copies or near copies of others.
        """
        self.rows = rows
        self.metric: Metric = metric
        self.info = info
        self.n = int(rows.shape[0])
        self.d = int(rows.shape[1])
        self.index = index
        self.order = order
        self.members = members
        self._step = 2 * _FLOAT32_STEP * (self.d / 8 + 8)
        self._error = np.float32(self._step * info.norm_max)
        """How far two float32 products with a query of norm 1 may be off together."""
        self._queries_unchanged = info.layout == Layout(self.d, "cosine")
        self._stored = stored_rows(index) if info.layout.plain(self.d) else None
        """The same rows at their positions in the index, where it has them whole: those that a
        search has just read are still in the processor's cache."""
        self._plans: dict[int, SearchPlan] = {}
        self._squares: Floats | None = None

    def search_one(
        self, query: Floats, k: int, *, exact: bool = False, excluded: Exclusion | None = None
    ) -> tuple[Ints, Floats]:
        """The best rows of one query.

        Args:
            query: float32 (d,), checked.
            k: how many, at least 1; fewer come back where there are fewer rows.
            exact: whether to score every row.
            excluded: rows left out.

        Returns:
            Row numbers int64 and scores float32, by (-score, row number).
        """
        prepared = prepare_one(query, self.metric)
        if exact or self.index is None:
            return self._scan([prepared], k, excluded)[0]
        if excluded is not None:
            return self._search_excluding(prepared, k, excluded)
        plan = self._plans.get(k) or self.plan_for(k)
        if not plan.scan:
            positions = self.candidates(prepared.vector[None], plan)[0]
            # FAISS puts -1 last where it found too little: in lists, or parts of a graph that
            # cannot be reached.
            if positions[-1] >= 0:
                return self.rerank(prepared, positions, k)
        return self._scan([prepared], k, None)[0]

    def _search_excluding(self, query: Query, k: int, excluded: Exclusion) -> tuple[Ints, Floats]:
        """The same where rows are left out.

        A selector inside the search of a graph would still let the rows left out take up its
        breadth: with the nearest 100 of 20,000 excluded, recall fell from 0.96 to 0.67, and of
        lists to 0.79. So the index is asked for as many more as were left out on the way, with the
        effort that this number was tuned for: 0.99 and 0.96.
        """
        count = k + min(_SLACK, 2 * excluded.count)
        while True:
            plan = self._plans.get(count) or self.plan_for(count)
            if plan.scan:
                return self._scan([query], k, excluded)[0]
            positions = self.candidates(query.vector[None], plan)[0]
            positions = positions[positions >= 0]
            dropped = self._excluded_positions(positions, excluded)
            passed = int(np.count_nonzero(dropped[:count]))
            # Recall of the last ranks is below that of the first: a third is not relied on.
            if 3 * passed <= 2 * (count - k):
                break
            count = k + 2 * passed
        rows, scores = self.rerank(query, positions[~dropped], k, excluded.contains)
        if rows.shape[0] < min(k, self.n - excluded.count):
            return self._scan([query], k, excluded)[0]
        return rows, scores

    def _excluded_positions(self, positions: Ints, excluded: Exclusion) -> NDArray[np.bool_]:
        """Bool (any,): the positions all rows of which are left out."""
        if self.members is None:
            return excluded.contains(self.rows_at(positions))
        rows, _ = self.members.expand(positions)
        return self.members.all_marked(positions, excluded.contains(rows))

    def search(
        self, queries: Floats, k: int, *, exact: bool = False, excluded: Exclusion | None = None
    ) -> tuple[Ints, Floats]:
        """The best rows of each query (m, d): both (m, k), padded with -1 and -inf."""
        m = queries.shape[0]
        rows = np.full((m, k), -1, dtype=np.int64)
        scores = np.full((m, k), -np.inf, dtype=np.float32)
        queries = prepare(queries, self.metric)
        todo = list(range(m))
        if exact or self.index is None:
            prepared = [prepare_one(query, self.metric) for query in queries]
            for line, (best, top) in enumerate(self._scan(prepared, k, excluded)):
                rows[line, : best.shape[0]], scores[line, : best.shape[0]] = best, top
            return rows, scores
        plan = self.plan_for(k)
        if excluded is None and not plan.scan:
            positions = self.candidates(queries, plan)
            if self.members is None:
                candidates = np.where(positions < 0, -1, self.rows_at(positions))
                final = rescore(queries, self.rows, candidates, self.metric)
                rows, scores = top_k_per_query(candidates, final, k)
                todo = np.flatnonzero(rows[:, -1] < 0).tolist()
            else:
                todo = np.flatnonzero(positions[:, -1] < 0).tolist()
                for line in np.flatnonzero(positions[:, -1] >= 0).tolist():
                    query = prepare_one(queries[line], self.metric)
                    rows[line], scores[line] = self.rerank(query, positions[line], k)
        for line in todo:
            best, top = self.search_one(queries[line], k, excluded=excluded)
            rows[line, : best.shape[0]], scores[line, : best.shape[0]] = best, top
        return rows, scores

    def candidates(self, queries: Floats, plan: SearchPlan) -> Ints:
        """int64 (m, plan.candidates): positions in the index, -1 where it found no more."""
        if not self._queries_unchanged:
            queries = self.info.layout.query(queries)
        m, count = queries.shape[0], plan.candidates
        positions = np.empty((m, count), dtype=np.int64)
        distances = np.empty((m, count), dtype=np.float32)
        # The wrapper round this call checks shapes that are right by construction.
        self.index.search_c(
            m, swig_ptr(queries), count, swig_ptr(distances), swig_ptr(positions), plan.parameters
        )
        return positions

    def rows_at(self, positions: Ints) -> Ints:
        """int64: the row at each position, of any shape."""
        if self.order is None:
            return positions
        return self.order[positions].astype(np.int64)

    def rerank(
        self,
        query: Query,
        positions: Ints,
        k: int,
        dropped: Callable[[Ints], NDArray[np.bool_]] | None = None,
    ) -> tuple[Ints, Floats]:
        """The best k at these positions, by final scores; copies that are dropped do not count."""
        rows = self.rows_at(positions)
        stored = self._stored
        # `take` would copy all stored rows where they are not aligned, as is usual within a file.
        vectors = self.rows.take(rows, axis=0) if stored is None else stored[positions]
        scores = row_scores(query, vectors)
        if self.members is not None:
            rows, scores = self.members.score(query, positions, scores, k, self.rows, dropped)
        return _top(rows, scores, k)

    def plan_for(self, k: int) -> SearchPlan:
        """How k rows are searched; kept once made."""
        breadth, count = effort_for(self.info.efforts, k)
        if self.info.family == "ivf_pq":
            broad = count > self.n // _RERANK_RATIO
        else:
            broad = breadth > self.n // _SCAN_RATIO
        plan = SearchPlan(
            candidates=min(count, self.info.positions),
            parameters=search_parameters(self.info.family, breadth),
            scan=k > self.info.positions or (broad and k > self.info.efforts[0].k),
        )
        self._plans[k] = plan
        return plan

    def _scan(
        self, queries: Sequence[Query], k: int, excluded: Exclusion | None
    ) -> list[tuple[Ints, Floats]]:
        """Every row against each query, in steps of bounded memory."""
        step = max(1, _SCAN_BYTES // (4 * self.n))
        result = []
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            vectors = np.stack([query.vector for query in part])
            approximate, errors = self._approximate_scores(vectors)
            for query, line, error in zip(part, approximate, errors, strict=True):
                if excluded is not None:
                    excluded.mask(line)
                result.append(self.refine(query, line, error, k))
        return result

    def _approximate_scores(self, queries: Floats) -> tuple[Floats, Floats]:
        """float32 (m, n): scores by float32 products, and (m,) how far two may be off together.

        Under `ip` the query is taken at norm 1, which changes no order.
        """
        norms = np.sqrt(squared_norms(queries))
        if self.metric == "l2":
            if self._squares is None:
                self._squares = squared_norms(self.rows).astype(np.float32)
            scores = self._products(queries)
            scores *= 2
            scores -= self._squares
            return scores, (self._step * (norms + self.info.norm_max) ** 2).astype(np.float32)
        unit = np.divide(queries, np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)
        return self._products(unit), np.full(queries.shape[0], self._error)

    def approximate_query(self, query: Query) -> tuple[Floats, np.float32]:
        """The same for `families.row_products`: the query (d,) to score, and the error."""
        if self.metric == "cosine":  # a unit vector, as it is prepared
            return query.vector, self._error
        norm = math.sqrt(query.square)
        if self.metric == "l2":
            return query.vector, np.float32(self._step * (norm + self.info.norm_max) ** 2)
        unit = query.vector if norm == 0 else (query.vector / norm).astype(np.float32)
        return unit, self._error

    def _products(self, queries: Floats) -> Floats:
        """float32 (m, n), by one product of a matrix with a vector where there is one query."""
        products: Floats
        if queries.shape[0] == 1:
            products = (self.rows @ queries[0])[None]
        else:
            products = queries @ self.rows.T
        return products

    def refine(
        self,
        query: Query,
        approximate: Floats,
        error: np.float32,
        k: int,
        numbers: Ints | None = None,
    ) -> tuple[Ints, Floats]:
        """The best k by final scores, among all rows that float32 cannot rule out.

        `numbers` are the rows that the approximate scores are of; all rows where it is None.
        """
        n = approximate.shape[0]
        k = min(k, n)
        ordered = approximate.copy()  # methods of arrays, as the functions take as long again
        ordered.partition(n - k)
        least = ordered[n - k]
        if least == -np.inf:
            rows = (approximate != -np.inf).nonzero()[0]
        else:
            rows = (approximate >= least - error).nonzero()[0]
        if not rows.size:
            return rows, np.empty(0, dtype=np.float32)
        return self.scored(query, k, rows if numbers is None else numbers[rows])

    def scored(self, query: Query, k: int, rows: Ints) -> tuple[Ints, Floats]:
        """The best k of these rows (any,), ascending, by final scores."""
        scores = row_scores(query, self.rows.take(rows, axis=0))
        order = top_k(scores, k)
        return rows[order], scores[order]


def _top(rows: Ints, scores: Floats, k: int) -> tuple[Ints, Floats]:
    order = top_k(scores, k, rows)
    return rows[order], scores[order]
