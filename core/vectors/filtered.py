"""Searching among the rows that a filter allows. The plan follows from how many there are.

Their number is known before the search, exactly. Few rows are scored one by one, which is exact. Of
many rows the index is asked for so many more that enough of them are allowed; where the filter goes
along with the vectors that finds too few, and the graph is walked among allowed rows, or all of
them are scored after all. A selector inside FAISS's own search of a graph is none of the plans: it
loses recall (decision record 0023).
"""

import math
from functools import cached_property
from typing import Any, Final, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.vectors.arrays import Floats, Ints, Query, prepare_one
from core.vectors.copies import Members
from core.vectors.families import graph_links, row_products
from core.vectors.parameters import effort_for
from core.vectors.search import Searcher
from core.vectors.walk import GraphWalk

Plan = Literal["all", "scan", "past", "walk"]
"""`all`: every row is allowed. `scan`: each allowed row is scored. `past`: the index is asked for
more rows than are needed. `walk`: the graph is walked among allowed rows."""

_CALL_US: Final = 100.0
"""What calls from Python take, whatever the plan."""
_SCAN_US: Final = 0.0005
"""Microseconds to score one number of allowed rows, which are here and there in memory."""
_FEW: Final = 256
"""So few rows are scored whatever the index is: by any other plan more are compared."""
_WHOLE: Final = 32
"""Up to k and so many more rows are all scored in float64: to leave some out by their float32
products first would take longer."""
_HOP_US: Final = 0.0004
"""For one number of a row that a graph leads to."""
_LINKS: Final = 30
"""Rows compared in a graph for each step of breadth."""
_LIST_US: Final = 0.0003
"""For one byte of a code in an inverted list."""
_WALK_US: Final = 900.0
_WALK_STEP_US: Final = 9.0
"""A walk takes so much, and so much more for each step of breadth, besides the rows it scores."""
_BEGUN: Final = 0.7
"""What a walk takes that begins at what asking past has found, of one that begins anywhere."""
_WALK_FEW: Final = 0.1
"""The fewer rows are allowed, the more links are followed: at this share twice as many."""
_GAIN: Final = 0.8
"""A plan that may find too few, or not the nearest, has to be faster by this factor."""
_WALK_BREADTH_MIN: Final = 112
_WALK_BREADTH: Final = 2.0
"""Breadth of a walk for each result (measured)."""
_PAST_SPARE: Final = 1.5
"""The index is asked for so many allowed rows for each result, and a few more."""
_PAST_MORE: Final = 20
_ASKED_BITS: Final = 5
_PAST_LEAST: Final = 1.35
"""With fewer allowed rows for each result the filter goes along with the vectors: what was found is
of the last ranks, which an index finds less surely."""


_NO_ROWS: Final[Ints] = np.empty(0, dtype=np.int64)
_NO_ROWS.flags.writeable = False


class Allowed:
    """The rows that a search may find: made once for a filter, used by any number of searches."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """Takes a mask, bool (n,), as it is."""
        self.mask = mask
        self.count = int(np.count_nonzero(mask))
        self._total = mask.shape[0]
        self._positions: NDArray[np.bool_] | None = None

    @classmethod
    def few(cls, rows: Ints, total: int) -> Self:
        """These rows (any,), ascending, of so many in all, without a look at the others."""
        allowed = object.__new__(cls)
        allowed.rows = rows
        allowed.count = rows.shape[0]
        allowed._total = total
        allowed._positions = None
        return allowed

    @cached_property
    def rows(self) -> Ints:
        """int64 (count,): the rows, ascending."""
        return self.mask.nonzero()[0]

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Bool (n,): which rows they are."""
        mask = np.zeros(self._total, dtype=np.bool_)
        mask[self.rows] = True
        return mask

    def without(self, rows: Ints) -> "Allowed":
        """Those but for a few rows (any,)."""
        if not self.mask[rows].any():
            return self
        mask = self.mask.copy()
        mask[rows] = False
        return Allowed(mask)

    def positions(self, members: Members) -> NDArray[np.bool_]:
        """Bool (positions,): those of the index of which any row is allowed."""
        if self._positions is None:
            marked = self.mask[members.rows]
            self._positions = np.logical_or.reduceat(marked, members.starts[:-1])
        return self._positions

    def refuses(self, rows: Ints) -> NDArray[np.bool_]:
        """Bool of the shape of `rows`: which of them are not allowed."""
        return ~self.mask[rows]


class Found(msgspec.Struct, frozen=True):
    """The best allowed rows, and how they were found."""

    rows: Ints
    """int64, by (-score, row number)."""
    scores: Floats
    """float32."""
    plan: Plan


class FilteredSearcher:
    """Searches one index among allowed rows. Never changed by a search."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self.rows = searcher.rows
        self._walk: GraphWalk | None = None
        """None where the index is no graph."""
        links = None if searcher.index is None else graph_links(searcher.index)
        if (
            links is not None
            and searcher.order is not None
            and 0 < searcher.info.norm_max < math.inf
        ):
            self._walk = GraphWalk(links, searcher.rows, searcher.order, searcher.metric)

    def plans(self, count: int, k: int) -> tuple[Plan, ...]:
        """The plans to try in order, for k of so many allowed rows: the last one always succeeds.

        The cheapest by estimate, and the cheapest that does not depend on where the rows are.
        """
        searcher = self._searcher
        if searcher.index is None or count <= k:
            return ("scan",)
        if count >= searcher.n:
            return ("all",)
        if count <= _FEW:
            return ("scan",)
        share = count / searcher.n
        sure: Plan = "scan"
        sure_us = _SCAN_US * count * searcher.d
        if self._walk is not None and self._walk_us(k, share) < _GAIN * sure_us:
            sure, sure_us = "walk", self._walk_us(k, share)
        asked = _asked(k, share)
        if asked > searcher.info.positions or self._past_us(asked) >= _GAIN * sure_us:
            return (sure,)
        if self._walk is not None and _BEGUN * self._walk_us(k, share) < _GAIN * sure_us:
            sure = "walk"
        return ("past", sure)

    def estimate_us(self, count: int, k: int) -> float:
        """Microseconds that the search may take, if each plan but the last finds too few."""
        share = count / self._searcher.n if self._searcher.n else 1.0
        estimates = {
            "all": lambda: self._past_us(k),
            "scan": lambda: _SCAN_US * count * self._searcher.d,
            "past": lambda: self._past_us(_asked(k, share)),
            "walk": lambda: self._walk_us(k, share),
        }
        return _CALL_US + sum(estimates[plan]() for plan in self.plans(count, k))

    def effort(self, plan: Plan, count: int, k: int) -> tuple[int, int]:
        """Breadth and candidates of a plan for k of so many allowed rows, as it begins.

        The breadth is 0 where every allowed row is a candidate.
        """
        searcher = self._searcher
        if plan == "scan" or searcher.index is None:
            return 0, count
        if plan == "walk":
            breadth = _walk_breadth(k)
            return breadth, breadth
        asked = k
        if plan == "past":
            asked = min(_asked(k, count / searcher.n), searcher.info.positions)
        if searcher.plan_for(asked).scan:
            return 0, searcher.n
        return effort_for(searcher.info.efforts, asked)

    def search_one(
        self, query: Floats, k: int, allowed: Allowed, *, plan: Plan | None = None
    ) -> Found:
        """The best allowed rows of one query.

        Args:
            query: float32 (d,), checked.
            k: how many, at least 1; fewer come back where fewer rows are allowed.
            allowed: the rows.
            plan: the only one to use, for measurements; a scan follows where it finds too few.
        """
        prepared = prepare_one(query, self._searcher.metric)
        least = min(k, allowed.count)
        if not least:
            return Found(_NO_ROWS, np.empty(0, dtype=np.float32), "scan")
        positions = _NO_ROWS
        for each in self.plans(allowed.count, k) if plan is None else (plan,):
            if each == "all":
                return Found(*self._searcher.search_one(query, k), each)
            if each == "scan" or (each == "walk" and self._walk is None):
                break
            if each == "past":
                positions = self._past(prepared, k, allowed)
                if positions.shape[0] < min(math.ceil(_PAST_LEAST * k), allowed.count):
                    continue
            else:
                positions = self._walked(prepared, k, allowed, positions)
            found = self._searcher.rerank(prepared, positions, k, allowed.refuses)
            if found[0].shape[0] >= least:
                return Found(*found, each)
        return Found(*self._scan(prepared, k, allowed), "scan")

    def _scan(self, query: Query, k: int, allowed: Allowed) -> tuple[Ints, Floats]:
        searcher = self._searcher
        if allowed.count <= k + _WHOLE:
            return searcher.scored(query, k, allowed.rows)
        asked, error = searcher.approximate_query(query)
        approximate = row_products(asked, searcher.rows, allowed.rows, searcher.metric)
        return searcher.refine(query, approximate, error, k, allowed.rows)

    def _past(self, query: Query, k: int, allowed: Allowed) -> Ints:
        """The allowed positions among more than are needed, which may be too few."""
        searcher = self._searcher
        asked = min(_asked(k, allowed.count / searcher.n), searcher.info.positions)
        positions = searcher.candidates(query.vector[None], searcher.plan_for(asked))[0]
        positions = positions[positions >= 0]
        found: Ints = positions[self._allows(positions, allowed)]
        return found

    def _walked(self, query: Query, k: int, allowed: Allowed, begin: Ints) -> Ints:
        """The allowed positions of a walk, which begins at these too."""
        walk = self._walk
        if walk is None:
            return begin
        share = allowed.count / self._searcher.n
        asked = self._searcher.approximate_query(query)[0]
        return walk.nearest(
            asked,
            _walk_breadth(k),
            share,
            lambda positions: self._allows(positions, allowed),
            begin,
        )

    def _allows(self, positions: NDArray[np.integer[Any]], allowed: Allowed) -> NDArray[np.bool_]:
        """Bool of the shape of `positions`: those with at least one allowed row.

        A position of -1 has any answer.
        """
        searcher = self._searcher
        marked: NDArray[np.bool_]
        if searcher.members is not None:
            marked = allowed.positions(searcher.members)[positions]
        elif searcher.order is not None:
            marked = allowed.mask[searcher.order[positions]]
        else:
            marked = allowed.mask[positions]
        return marked

    def _past_us(self, asked: int) -> float:
        info, d = self._searcher.info, self._searcher.d
        breadth, candidates = effort_for(info.efforts, asked)
        ranked = _HOP_US * candidates * d
        if info.family == "ivf_pq":
            lists = float(info.build.get("lists", 1))
            code_bytes = float(info.build.get("code_bytes", d))
            return ranked + _LIST_US * breadth * info.positions / max(1.0, lists) * code_bytes
        return ranked + _HOP_US * breadth * _LINKS * d

    def _walk_us(self, k: int, share: float) -> float:
        breadth = _walk_breadth(k)
        scored = _HOP_US * breadth * _LINKS * self._searcher.d
        return (_WALK_US + _WALK_STEP_US * breadth + scored) * (1 + _WALK_FEW / share)


def _asked(k: int, share: float) -> int:
    """Of how many nearest rows enough are allowed, where the filter has nothing to do with them.

    In steps of a sixteenth or less, as a searcher keeps what it made for each number.
    """
    asked = math.ceil((_PAST_SPARE * k + _PAST_MORE) / share)
    step = 1 << max(0, asked.bit_length() - _ASKED_BITS)
    return -(-asked // step) * step


def _walk_breadth(k: int) -> int:
    return max(_WALK_BREADTH_MIN, math.ceil(_WALK_BREADTH * k))
