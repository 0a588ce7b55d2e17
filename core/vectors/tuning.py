"""Tuning search parameters: the cheapest that reach the target recall."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from core.models import Family
from core.vectors.arrays import Doubles, Floats, Ints, prepare_one
from core.vectors.exact import KnownScores, rescore
from core.vectors.families import Plan, search_parameters
from core.vectors.parameters import Effort, IndexLimits, Trial, ZeroRecall
from core.vectors.recall import (
    RECALL_AT,
    ZERO_RECALL_MAX,
    ZERO_RECALL_QUERIES,
    reaches,
    recall_lower_bound,
    recalls,
    zero_recall_bound,
)
from core.vectors.sampling import WIDE_AT, WIDE_QUERIES, QuerySample

_STEPS: Final = 8
"""Measurements between the last breadth that was too narrow and the first that was not."""
_WIDER: Final = 1.5
"""The factor of breadth while too many queries have a recall of 0."""
_FEW_LISTS: Final = 128
"""Up to this many inverted lists, all may be probed."""
_FACTORS: Final[dict[Family, tuple[int, ...]]] = {
    "hnsw_flat": (1,),
    "hnsw_sq8": (1, 2),
    "ivf_pq": (2, 4, 8, 16),
}
"""Candidates per result, to be ranked by float32."""
_ZERO_METHOD: Final = "held-out rows in no crowd of rows, and such rows with noise"


@dataclass
class Tuner:
    """Measures one index that has all rows but those held out."""

    index: Any
    plan: Plan
    rows: Floats
    sample: QuerySample
    limits: IndexLimits
    trials: list[Trial] = field(default_factory=list)
    best: float = 0.0
    """The highest recall@10 that could be promised."""
    zero: ZeroRecall | None = None
    """The measurement of queries with a recall of 0, where the recall was high enough."""
    _known: KnownScores = field(init=False)
    """Scores of the queries that are searched again at each breadth."""

    def __post_init__(self) -> None:
        self._known = KnownScores(self.sample.queries, self.rows, self.sample.metric)

    def tune(self, target: float) -> tuple[Effort, Doubles] | None:
        """The cheapest effort that reaches the target recall@10, with the recalls behind it.

        With it at most one query in a thousand has a recall of 0: see `zero`.
        """
        tuned = self._tune(RECALL_AT, target)
        most = self._bounds(RECALL_AT)[1]
        while tuned is not None:
            self.zero = self._zero_recall(tuned[0])
            if self.zero.upper <= ZERO_RECALL_MAX and self.zero.copies <= ZERO_RECALL_MAX:
                return tuned
            if tuned[0].breadth >= most:
                return None
            wider = min(most, math.ceil(_WIDER * tuned[0].breadth))
            measurements = self._measure(RECALL_AT, wider)
            sufficient = [one for one in measurements if reaches(one[1], target)]
            tuned = min(sufficient or measurements, key=lambda one: self._cost(one[0]))
        return None

    def tune_wide(self, target: float) -> Effort | None:
        """The effort at the second k; None where the index has no more rows than that."""
        if self.sample.indexed.shape[0] <= WIDE_AT:
            return None
        tuned = self._tune(WIDE_AT, target)
        return None if tuned is None else tuned[0]

    def _tune(self, k: int, target: float) -> tuple[Effort, Doubles] | None:
        """The cheapest effort that reaches the target at k, with the recall of each query.

        Breadth is doubled until the target is reached, and then narrowed down. For k over 10 the
        target is not promised: where nothing reaches it, the broadest search is taken.
        """
        measurements: list[tuple[Effort, Doubles]] = []
        breadth, most = self._bounds(k)
        below = breadth
        while True:
            measurements += self._measure(k, breadth)
            reached = any(reaches(measured, target) for _, measured in measurements)
            if reached or breadth >= most:
                break
            below, breadth = breadth, min(most, 2 * breadth)
        step = max(1, (breadth - below) // _STEPS)
        for between in range(below + step, breadth, step) if reached else ():
            measurements += self._measure(k, between)
        sufficient = [one for one in measurements if reaches(one[1], target)]
        if not sufficient:
            return None if k == RECALL_AT else measurements[-1]
        return min(sufficient, key=lambda one: self._cost(one[0]))

    def _measure(self, k: int, breadth: int) -> list[tuple[Effort, Doubles]]:
        """Each number of candidates at one breadth."""
        family = self.plan.family
        queries, truth = self.sample.queries, self.sample.truth
        if k == WIDE_AT:
            queries, truth = queries[:WIDE_QUERIES], self.sample.wide_truth
        widest = min(k * self._factors()[-1], self.index.ntotal)
        if family != "ivf_pq":
            # A graph search is at least as broad as its number of candidates.
            widest = max(k, min(widest, breadth))
        positions, scores = self._candidates(queries, breadth, widest, self._known)
        measurements = []
        for count in sorted({min(k * factor, widest) for factor in self._factors()}):
            found = self._result_scores(queries, positions[:, :count], scores[:, :count], k)
            measured = self.sample.promised(recalls(found, truth))
            measurements.append((Effort(k, breadth, count), measured))
            self.trials.append(Trial(family, k, breadth, count, float(measured.mean())))
            if k == RECALL_AT:
                self.best = max(self.best, recall_lower_bound(measured))
        return measurements

    def _zero_recall(self, effort: Effort) -> ZeroRecall:
        """How many queries have a recall of 0, among enough queries to bound their share."""
        few, many = ZERO_RECALL_QUERIES
        measured = self._recalls(effort, few, np.empty(0))
        count = int(np.count_nonzero(measured == 0))
        if zero_recall_bound(count, measured.shape[0]) > ZERO_RECALL_MAX and (
            # With more failures the larger sample could not pass either.
            zero_recall_bound(count, max(many, measured.shape[0])) <= ZERO_RECALL_MAX
        ):
            measured = self._recalls(effort, many, measured)
            count = int(np.count_nonzero(measured == 0))
        asked = measured.shape[0]
        trial = Trial(
            family=self.plan.family,
            k=effort.k,
            breadth=effort.breadth,
            candidates=effort.candidates,
            recall=float(measured.mean()),
            zero_recall=count,
            zero_recall_queries=asked,
        )
        self.trials.append(trial)
        bound = zero_recall_bound(count, asked)
        return ZeroRecall(asked, count, bound, _ZERO_METHOD, self._lost_copies(effort))

    def _lost_copies(self, effort: Effort) -> float:
        """The share of copies, by rows, that have a recall of 0."""
        queries, truth, sizes = self.sample.copy_queries
        if not sizes.size:
            return 0.0
        positions, scores = self._candidates(queries, effort.breadth, effort.candidates)
        lost = recalls(self._result_scores(queries, positions, scores, RECALL_AT), truth) == 0
        return float(sizes[lost].sum() / sizes.sum())

    def _recalls(self, effort: Effort, count: int, known: Doubles) -> Doubles:
        """The recall@10 of at least `count` queries, the first of which are known."""
        queries, truth = (part[known.shape[0] :] for part in self.sample.new_queries(count))
        positions, scores = self._candidates(queries, effort.breadth, effort.candidates)
        found = self._result_scores(queries, positions, scores, RECALL_AT)
        return np.concatenate((known, recalls(found, truth)))

    def _factors(self) -> tuple[int, ...]:
        members = self.sample.members
        has_near_copies = members is not None and members.radii is not None
        factors = _FACTORS[self.plan.family]
        # The representative of near copies may be further away than the true neighbour.
        return (1, 2) if has_near_copies and factors == (1,) else factors

    def _bounds(self, k: int) -> tuple[int, int]:
        """The smallest and the largest breadth to try."""
        if self.plan.family == "ivf_pq":
            share = int(self.plan.lists * self.limits.probe_share_max)
            return 1, self.plan.lists if self.plan.lists <= _FEW_LISTS else share
        return k, max(k, self.limits.ef_search_max)

    def _cost(self, effort: Effort) -> float:
        """An estimate of the bytes that a search reads, to compare two efforts on one index."""
        row = 4.0 * int(self.rows.shape[1])
        if self.plan.family == "ivf_pq":
            scanned = int(self.index.ntotal) / self.plan.lists * self.plan.code_bytes
            return effort.breadth * scanned + effort.candidates * row
        width = self.plan.layout.dimension * (4.0 if self.plan.family == "hnsw_flat" else 1.0)
        return effort.breadth * 30 * width + effort.candidates * row

    def _candidates(
        self, queries: Floats, breadth: int, count: int, known: KnownScores | None = None
    ) -> tuple[Ints, Floats]:
        """Positions and final scores of their rows, in the order the index gave them: (m, count).

        -1 and -inf where there are fewer. `known` is for queries that are searched more than once.
        """
        parameters = search_parameters(self.plan.family, breadth)
        asked = self.plan.layout.query(queries)
        _, positions = self.index.search(asked, count, params=parameters)
        rows = np.where(positions < 0, -1, self.sample.order[positions]).astype(np.int64)
        if known is not None:
            return positions, known.rescore(rows)
        return positions, rescore(queries, self.rows, rows, self.sample.metric)

    def _result_scores(self, queries: Floats, positions: Ints, scores: Floats, k: int) -> Floats:
        """The scores that a search would return, in any order: float32 (m, any)."""
        members = self.sample.members
        if members is None or members.radii is None:
            return scores
        result = np.full((queries.shape[0], k), -np.inf, dtype=np.float32)
        for line, vector in enumerate(queries):
            there = positions[line] >= 0
            query = prepare_one(vector, self.sample.metric)
            _, found = members.score(
                query, positions[line, there], scores[line, there], k, self.rows
            )
            top = -np.sort(-found)[:k]
            result[line, : top.shape[0]] = top
        return result
