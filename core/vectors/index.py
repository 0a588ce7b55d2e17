"""Choosing, building and tuning the index of a version.

By counts, bytes and measured recall, never by time: the same rows get the same kind of index on any
machine. Recall is measured on rows held out of the index, which are added last.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import RecallBelowTarget
from core.models import Family, Metric
from core.vectors.arrays import Doubles, Floats, Ints, squared_norms
from core.vectors.copies import Groups, Members
from core.vectors.exact import rescore
from core.vectors.families import (
    ADD_ROWS,
    Plan,
    make,
    plan,
    search_parameters,
    set_threads,
    train,
)
from core.vectors.parameters import Effort, IndexInfo, IndexLimits, Recall, Trial
from core.vectors.recall import RECALL_AT, ground_truth, held_out, reaches, recalls, surely

Progress = Callable[[str, int, int], None]
"""Called with the stage (`index`, `recall`), what is done and the total."""

_WIDE_AT: Final = 100
"""The second k that search parameters are tuned for; those between are on a line."""
_WIDE_QUERIES: Final = 250
"""Queries that the second k is tuned with, which promises nothing."""
_STEPS: Final = 8
"""Measurements between the last breadth that was too narrow and the first that was not."""
_FEW_LISTS: Final = 128
"""So few inverted lists may all be probed."""
_QUERIES_MIN: Final = 30
"""Fewer held-out rows than this measure nothing: all rows ask instead."""
_FACTORS: Final[dict[Family, tuple[int, ...]]] = {
    "hnsw_flat": (1,),
    "hnsw_sq8": (1, 2),
    "ivf_pq": (2, 4, 8, 16),
}
"""Candidates asked for each row wanted, to be ranked by float32."""


class Built(msgspec.Struct, frozen=True):
    """An index with all rows in it."""

    info: IndexInfo
    recall: Recall
    trials: tuple[Trial, ...] = ()
    index: Any = None
    """The FAISS index; None for the family exact."""
    order: NDArray[np.int32] | None = None
    """int32 (positions,): the row at each position of the index, held-out rows last."""
    members: Members | None = None
    """The rows at each position, where some rows are copies of others."""


def choose(
    rows: int,
    dimension: int,
    metric: Metric,
    *,
    norm_max: float,
    target_recall: float,
    limits: IndexLimits,
    forced: Family | None = None,
) -> list[Plan]:
    """The indexes to try, in order. Empty when nothing fits the limits."""

    def of(family: Family, why: str) -> Plan:
        planned = plan(family, rows, dimension, metric, norm_max)
        return msgspec.structs.replace(planned, why=why)

    if forced is not None:
        return [of(forced, "asked for")]
    numbers = rows * dimension
    if numbers <= limits.exact_numbers_max or rows <= limits.held_out_min:
        return [of("exact", f"{rows} rows of {dimension} numbers are scanned as fast as searched")]
    plans: list[Plan] = []
    if target_recall < 1.0:
        plans = [
            of("hnsw_flat", "a graph over float32 rows is small enough"),
            of("hnsw_sq8", "a graph over a byte a number fits the memory budget"),
            of("ivf_pq", "graphs do not fit the memory budget, or do not reach the target"),
        ]
        if plans[0].bytes > limits.graph_float_bytes_max:
            plans[:2] = plans[1], plans[0]
        plans = [planned for planned in plans if planned.bytes <= limits.index_bytes_max]
    if numbers <= limits.exact_fallback_numbers_max:
        plans.append(of("exact", "no index reaches the target recall"))
    return plans


def build_index(
    rows: Floats,
    metric: Metric,
    *,
    target_recall: float,
    limits: IndexLimits,
    progress: Progress,
    forced: Family | None = None,
    deterministic: bool = False,
    threads: int = 1,
) -> Built:
    """The first planned index that reaches the target recall, with all rows in it.

    Args:
        rows: float32 (n, d), prepared, n at least 1; may be mapped from a file.
        metric: what a score is.
        target_recall: recall@10 to promise.
        limits: what it may cost.
        progress: told of what is done.
        forced: the one family to use, whatever the limits say of size.
        deterministic: whether the same rows must give the same bytes: adds on one thread.
        threads: of FAISS, which are set for the whole process.

    Raises:
        RecallBelowTarget: when none of them does.
    """
    norm_max = 1.0 if metric == "cosine" else float(np.sqrt(squared_norms(rows).max()))
    plans = choose(
        rows.shape[0],
        rows.shape[1],
        metric,
        norm_max=norm_max,
        target_recall=target_recall,
        limits=limits,
        forced=forced,
    )
    sample: _Sample | None = None
    trials: list[Trial] = []
    nearest = 0.0
    for planned in plans:
        if planned.family == "exact":
            return _exact(planned, target_recall, norm_max, trials)
        set_threads(threads)
        sample = sample or _Sample(rows, metric, limits)
        builder = _Builder(rows, metric, planned, sample, progress)
        set_threads(1 if deterministic else threads)
        builder.add(sample.kept)
        set_threads(threads)
        tuner = _Tuner(builder, limits, target_recall)
        progress("recall", 0, sample.queries.shape[0])
        tuned = tuner.tune(RECALL_AT)
        nearest = max(nearest, tuner.best)
        wide = (
            tuner.tune(_WIDE_AT) if tuned is not None and sample.kept.shape[0] > _WIDE_AT else None
        )
        trials += tuner.trials
        if tuned is None:
            continue
        effort, measured = tuned
        efforts = (effort,) if wide is None else (effort, wide[0])
        progress("recall", sample.queries.shape[0], sample.queries.shape[0])
        set_threads(1 if deterministic else threads)
        builder.add(sample.added_last)
        set_threads(threads)
        info = builder.info(efforts, norm_max)
        recall = Recall(
            value=float(measured.mean()),
            at=RECALL_AT,
            target=target_recall,
            queries=measured.shape[0],
            method=sample.method,
            lower=surely(measured),
        )
        return Built(info, recall, tuple(trials), builder.index, sample.order, sample.members)
    raise RecallBelowTarget(nearest, target_recall, _advice(plans, nearest, target_recall, limits))


def _exact(planned: Plan, target: float, norm_max: float, trials: list[Trial]) -> Built:
    info = IndexInfo(planned.family, planned.why, planned.layout, 0, {}, norm_max=norm_max)
    recall = Recall(1.0, RECALL_AT, target, 0, "every row is scored")
    return Built(info, recall, tuple(trials))


def _advice(plans: list[Plan], nearest: float, target: float, limits: IndexLimits) -> str:
    if not plans:
        return (
            f"no index fits index_bytes_max = {limits.index_bytes_max} at a target recall of "
            f"{target}: raise K9_INDEX_BYTES_MAX, or lower target_recall"
        )
    tried = ", ".join(planned.family for planned in plans)
    promised = math.floor(nearest * 10_000) / 10_000  # rounded up it might not be below the target
    if nearest >= target:
        return (
            f"the recall@{RECALL_AT} of {promised:.4f} ({tried}) that was measured is too close to "
            f"the target of {target} to promise it to other queries: lower target_recall"
        )
    return (
        f"the best recall@{RECALL_AT} that can be promised is {promised:.4f} ({tried}), "
        f"below the target of {target}: lower target_recall, or raise K9_INDEX_BYTES_MAX"
    )


class _Sample:
    """The queries that recall is measured with, and the rows they are not among."""

    def __init__(self, rows: Floats, metric: Metric, limits: IndexLimits) -> None:
        groups = Groups(rows)
        total = groups.first.shape[0]
        held = held_out(total, least=limits.held_out_min, most=limits.held_out_max)
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
        self.added_last: Ints = groups.first[held]
        self.order = groups.first[order].astype(np.int32)
        self.members = None if groups.trivial else groups.members(order)
        self.truth = ground_truth(self.queries, rows, self.kept, _WIDE_AT, metric)


class _Builder:
    """One index while it is made."""

    def __init__(
        self, rows: Floats, metric: Metric, planned: Plan, sample: _Sample, progress: Progress
    ) -> None:
        self.rows = rows
        self.metric: Metric = metric
        self.plan = planned
        self.sample = sample
        self.index = make(planned)
        self._progress = progress
        progress("index", 0, rows.shape[0])
        train(self.index, planned, rows, sample.kept)

    def add(self, numbers: Ints) -> None:
        """Adds rows, in the order of `order`."""
        for start in range(0, numbers.shape[0], ADD_ROWS):
            block = numbers[start : start + ADD_ROWS]
            self.index.add(self.plan.layout.rows(self.rows[block]))
            self._progress("index", int(self.index.ntotal), self.rows.shape[0])

    def info(self, efforts: tuple[Effort, ...], norm_max: float) -> IndexInfo:
        """What the manifest says of it."""
        return IndexInfo(
            family=self.plan.family,
            why=self.plan.why,
            layout=self.plan.layout,
            bytes=self.plan.bytes,
            build=self.plan.parameters(),
            positions=int(self.index.ntotal),
            efforts=efforts,
            norm_max=norm_max,
        )


class _Tuner:
    """Finds the least search parameters that reach the target recall."""

    def __init__(self, builder: _Builder, limits: IndexLimits, target: float) -> None:
        self._builder = builder
        self._limits = limits
        self._target = target
        self._asked = builder.plan.layout.query(builder.sample.queries)
        self.trials: list[Trial] = []
        self.best = 0.0
        """The best recall@10 that could be promised."""

    def tune(self, k: int) -> tuple[Effort, Doubles] | None:
        """The cheapest effort that reaches the target at k, with the recall of each query.

        Breadth is doubled until the target is reached, and then narrowed down. For k over 10 the
        target is not promised: where nothing reaches it, the broadest search is taken.
        """
        tried: list[tuple[Effort, Doubles]] = []
        breadth, most = self._bounds(k)
        below = breadth
        while True:
            tried += self._try(k, breadth)
            reached = any(reaches(measured, self._target) for _, measured in tried)
            if reached or breadth >= most:
                break
            below, breadth = breadth, min(most, 2 * breadth)
        step = max(1, (breadth - below) // _STEPS)
        for between in range(below + step, breadth, step) if reached else ():
            tried += self._try(k, between)
        good = [found for found in tried if reaches(found[1], self._target)]
        if not good:
            return None if k == RECALL_AT else tried[-1]
        return min(good, key=lambda found: self._cost(found[0].breadth, found[0].candidates))

    def _try(self, k: int, breadth: int) -> list[tuple[Effort, Doubles]]:
        """Each number of candidates at one breadth."""
        family = self._builder.plan.family
        queries = slice(None) if k == RECALL_AT else slice(_WIDE_QUERIES)
        truth = self._builder.sample.truth[queries, :k]
        widest = min(k * _FACTORS[family][-1], self._builder.index.ntotal)
        if family != "ivf_pq":
            # A graph search is as broad as what it is asked for, if that is more.
            widest = max(k, min(widest, breadth))
        scores = self._scores(queries, breadth, widest)
        tried = []
        for count in sorted({min(k * factor, widest) for factor in _FACTORS[family]}):
            measured = recalls(scores[:, :count], truth)
            tried.append((Effort(k, breadth, count), measured))
            self.trials.append(Trial(family, k, breadth, count, float(measured.mean())))
            if k == RECALL_AT:
                self.best = max(self.best, surely(measured))
        return tried

    def _bounds(self, k: int) -> tuple[int, int]:
        """The least and the most breadth to try."""
        planned = self._builder.plan
        if planned.family == "ivf_pq":
            share = int(planned.lists * self._limits.probe_share_max)
            return 1, planned.lists if planned.lists <= _FEW_LISTS else share
        return k, max(k, self._limits.ef_search_max)

    def _cost(self, breadth: int, candidates: int) -> float:
        """Bytes that a search reads, near enough to compare two efforts on one index."""
        planned = self._builder.plan
        row = 4.0 * int(self._builder.rows.shape[1])
        if planned.family == "ivf_pq":
            scanned = int(self._builder.index.ntotal) / planned.lists * planned.code_bytes
            return breadth * scanned + candidates * row
        width = planned.layout.dimension * (4.0 if planned.family == "hnsw_flat" else 1.0)
        return breadth * 30 * width + candidates * row

    def _scores(self, queries: slice, breadth: int, count: int) -> Floats:
        """float32 (m, count): final scores of the candidates, in the order the index gave them."""
        builder = self._builder
        parameters = search_parameters(builder.plan.family, breadth)
        _, positions = builder.index.search(self._asked[queries], count, params=parameters)
        candidates = np.where(positions < 0, -1, builder.sample.order[positions]).astype(np.int64)
        return rescore(builder.sample.queries[queries], builder.rows, candidates, builder.metric)
