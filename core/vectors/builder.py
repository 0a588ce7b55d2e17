"""Choosing, building and tuning the index of a version.

By counts, bytes and measured recall, never by time: the same rows get the same kind of index on any
machine. Recall is measured on rows held out of the index, which are added last. The same rows give
the same bytes: FAISS adds rows to a graph in batches whose bounds do not depend on threads.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import RecallBelowTarget
from core.models import Family, Metric, Progress, ProgressCallback
from core.vectors.arrays import Floats, Ints, squared_norms
from core.vectors.copies import Members
from core.vectors.families import ADD_ROWS, Plan, create_index, plan_index, set_threads, train
from core.vectors.filtered_recall import recall_bands
from core.vectors.near_copies import RADIUS_SHARES
from core.vectors.parameters import IndexInfo, IndexLimits, Recall, RecallBand, Trial, ZeroRecall
from core.vectors.recall import RECALL_AT, ZERO_RECALL_MAX, recall_lower_bound
from core.vectors.sampling import QuerySample
from core.vectors.search import Searcher
from core.vectors.tuning import Tuner


class BuiltIndex(msgspec.Struct, frozen=True):
    """An index with all rows in it."""

    info: IndexInfo
    recall: Recall
    trials: tuple[Trial, ...] = ()
    index: Any = None
    """The FAISS index; None for the family exact."""
    order: NDArray[np.int32] | None = None
    """int32 (positions,): the row at each position of the index, held-out rows last."""
    members: Members | None = None
    """The rows at each position, where some rows are copies or near copies of others."""
    bands: tuple[RecallBand, ...] = ()
    """The recall of filtered searches."""


def plan_indexes(
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
        planned = plan_index(family, rows, dimension, metric, norm_max)
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
    progress: ProgressCallback,
    forced: Family | None = None,
    threads: int = 1,
) -> BuiltIndex:
    """The first planned index that reaches the target recall, with all rows in it.

    Args:
        rows: float32 (n, d), prepared, n at least 1; may be mapped from a file.
        metric: what a score is.
        target_recall: recall@10 to reach.
        limits: of its size and search cost.
        progress: called with the stages `index` and `recall`.
        forced: the only family to try, whatever its size.
        threads: of FAISS, set for the whole process.

    Raises:
        RecallBelowTarget: none of them does, or too many queries have a recall of 0.
    """
    norm_max = 1.0 if metric == "cosine" else float(np.sqrt(squared_norms(rows).max()))
    plans = plan_indexes(
        rows.shape[0],
        rows.shape[1],
        metric,
        norm_max=norm_max,
        target_recall=target_recall,
        limits=limits,
        forced=forced,
    )
    set_threads(threads)
    attempts = _Attempts(rows, metric, target_recall, limits, progress)
    for planned in plans:
        if planned.family == "exact":
            return _exact(planned, target_recall, norm_max, attempts.trials)
        built = attempts.build(planned, norm_max)
        while built is None and attempts.widen_groups():
            built = attempts.build(planned, norm_max)
        if built is not None:
            return built
    nearest = max((tuner.best for tuner in attempts.tuners), default=0.0)
    advice = _advice(plans, attempts.tuners, target_recall, limits)
    raise RecallBelowTarget(nearest, target_recall, advice)


def _exact(planned: Plan, target: float, norm_max: float, trials: list[Trial]) -> BuiltIndex:
    info = IndexInfo(planned.family, planned.why, planned.layout, 0, {}, norm_max=norm_max)
    method = "every row is scored"
    zero = ZeroRecall(queries=0, count=0, upper=0.0, method=method)
    recall = Recall(1.0, RECALL_AT, target, 0, method, zero=zero)
    bands = (RecallBand(1.0, 1.0, 0),)
    return BuiltIndex(info, recall, tuple(trials), bands=bands)


def _advice(plans: list[Plan], tuners: list[Tuner], target: float, limits: IndexLimits) -> str:
    if not plans:
        return (
            f"no index fits index_bytes_max = {limits.index_bytes_max} at a target recall of "
            f"{target}: raise K9_INDEX_BYTES_MAX, or lower target_recall"
        )
    tried = ", ".join(planned.family for planned in plans)
    failed = [tuner.zero for tuner in tuners if tuner.zero is not None]
    if failed:
        zero = min(failed, key=lambda measured: max(measured.upper, measured.copies))
        return (
            f"{zero.count} of {zero.queries} new queries and {zero.copies:.1%} of the "
            f"copies found none of their {RECALL_AT} nearest rows ({tried}), the most that can be "
            f"promised must be {ZERO_RECALL_MAX:.1%}: remove rows that are almost equal to many "
            "others, or raise K9_INDEX_BYTES_MAX so that other indexes fit"
        )
    nearest = max(tuner.best for tuner in tuners)
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


@dataclass
class _Attempts:
    """Builds one index after the other, until one reaches the target."""

    rows: Floats
    metric: Metric
    target: float
    limits: IndexLimits
    progress: ProgressCallback
    shares: list[float] = field(default_factory=lambda: list(RADIUS_SHARES))
    sample: QuerySample | None = None
    tuners: list[Tuner] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def build(self, plan: Plan, norm_max: float) -> BuiltIndex | None:
        """The index with all rows in it; None where it does not reach the target."""
        sample = self.sample = self.sample or self._next_sample()
        index = create_index(plan)
        self.progress(Progress("index", 0, self.rows.shape[0]))
        train(index, plan, self.rows, sample.indexed)
        self._add(index, plan, sample.indexed)
        tuner = Tuner(index, plan, self.rows, sample, self.limits)
        self.tuners.append(tuner)
        queries = sample.queries.shape[0]
        self.progress(Progress("recall", 0, queries))
        promised = tuner.tune(self.target)
        wide = None if promised is None else tuner.tune_wide(self.target)
        self.trials += tuner.trials
        if promised is None:
            return None
        effort, measured = promised
        info = IndexInfo(
            family=plan.family,
            why=plan.why,
            layout=plan.layout,
            bytes=plan.bytes,
            build=plan.parameters(),
            positions=int(index.ntotal),
            efforts=(effort,) if wide is None else (effort, wide),
            norm_max=norm_max,
            near_copies=sample.near_copies,
            near_copies_max=sample.near_copies_max,
        )
        bands = self._bands(index, info, sample)
        self.progress(Progress("recall", queries, queries))
        self._add(index, plan, sample.held_out)
        info = msgspec.structs.replace(info, positions=int(index.ntotal))
        recall = Recall(
            value=float(measured.mean()),
            at=RECALL_AT,
            target=self.target,
            queries=measured.shape[0],
            method=sample.method,
            lower=recall_lower_bound(measured),
            zero=tuner.zero,
        )
        return BuiltIndex(
            info, recall, tuple(self.trials), index, sample.order, sample.members, bands
        )

    def _bands(self, index: Any, info: IndexInfo, sample: QuerySample) -> tuple[RecallBand, ...]:
        """The recall of filtered searches, before the held-out rows are added."""
        members = None if sample.members is None else sample.members.first(info.positions)
        order = sample.order[: info.positions]
        return recall_bands(Searcher(self.rows, self.metric, info, index, order, members), sample)

    def widen_groups(self) -> bool:
        """Whether more rows are near copies by the next radius, which may help the last index.

        Only where its recall was high enough, and too many queries had a recall of 0.
        """
        if self.tuners[-1].zero is None or self.sample is None or not self.shares:
            return False
        wider = self._next_sample()
        if wider.near_copies == self.sample.near_copies:
            return False
        self.sample = wider
        return True

    def _next_sample(self) -> QuerySample:
        return QuerySample(self.rows, self.metric, self.limits, self.shares.pop(0))

    def _add(self, index: Any, plan: Plan, numbers: Ints) -> None:
        """Adds rows, in the order of `BuiltIndex.order`."""
        for start in range(0, numbers.shape[0], ADD_ROWS):
            index.add(plan.layout.rows(self.rows[numbers[start : start + ADD_ROWS]]))
            self.progress(Progress("index", int(index.ntotal), self.rows.shape[0]))
