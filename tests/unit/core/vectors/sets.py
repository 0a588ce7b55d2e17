"""Sets of vectors that the tests of this package share."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from core.models import Family, Metric
from core.vectors.arrays import Floats, Ints, prepare
from core.vectors.builder import BuiltIndex, build_index
from core.vectors.parameters import IndexLimits
from core.vectors.search import Searcher

CATALOGUE = Path(__file__).parents[4] / "deploy/local/catalogue-5k.parquet"
METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")
FAMILIES: tuple[Family, ...] = ("exact", "hnsw_flat", "hnsw_sq8", "ivf_pq")


@cache
def catalogue() -> Floats:
    """float32 (5000, 384): real embeddings, with near-duplicates and hubs, in no order.

    The file is sorted by popularity: its last rows are not like its first.
    """
    column = pq.read_table(CATALOGUE, columns=["vector"])["vector"].combine_chunks()
    found = np.asarray(column.flatten()).astype(np.float32).reshape(len(column), -1)
    return np.random.default_rng(2).permutation(found)


def real(rows: int, metric: Metric) -> Floats:
    """Prepared real rows; of uneven lengths where a metric minds."""
    found = catalogue()[:rows]
    if metric != "cosine":
        lengths = np.random.default_rng(3).lognormal(0.0, 0.4, (rows, 1))
        found = (found * lengths).astype(np.float32)
    return prepare(found, metric)


def truth(queries: Floats, rows: Floats, metric: Metric, k: int) -> tuple[Ints, Floats]:
    """What plain numpy in float64 says: rows and scores (m, k), by (-score, row)."""
    q, r = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        found = np.stack([-((line - r) ** 2).sum(axis=1) for line in q])
    else:
        found = q @ r.T
        if metric == "cosine":
            found /= np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(r, axis=1)[None]
    order = np.argsort(-found, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(found, order, axis=1).astype(np.float32)


def build(
    rows: Floats, metric: Metric, family: Family | None, target: float = 0.9, threads: int = 1
) -> tuple[BuiltIndex, Searcher]:
    """An index over prepared rows, as a build makes it, and what searches it."""
    return _build(rows, metric, family, target, threads, IndexLimits())


def build_quickly(
    rows: Floats, metric: Metric, family: Family, target: float = 0.9
) -> tuple[BuiltIndex, Searcher]:
    """The same for tests of searches: its recall is measured with a tenth of the queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.vectors.tuning.ZERO_RECALL_QUERIES", (370, 370))
        patch.setattr("core.vectors.tuning.ZERO_RECALL_MAX", 0.01)
        return _build(rows, metric, family, target, 1, IndexLimits(held_out_min=200))


def _build(
    rows: Floats,
    metric: Metric,
    family: Family | None,
    target: float,
    threads: int,
    limits: IndexLimits,
) -> tuple[BuiltIndex, Searcher]:
    built = build_index(
        rows,
        metric,
        target_recall=target,
        limits=limits,
        progress=lambda *_: None,
        forced=family,
        threads=threads,
    )
    return built, Searcher(rows, metric, built.info, built.index, built.order, built.members)
