import faiss
import msgspec
import numpy as np
import pytest

from core.errors import RecallBelowTarget
from core.models import Family
from core.vectors.builder import build_index, plan_indexes
from core.vectors.families import create_index, plan_index, set_threads
from core.vectors.parameters import IndexLimits
from core.vectors.search import Exclusion
from tests.unit.core.vectors.sets import FAMILIES, METRICS, build, real

GIB = 1024**3


def families(rows: int, dimension: int, target: float = 0.95, **limits: int) -> list[str]:
    """The families planned, in order."""
    plans = plan_indexes(
        rows, dimension, "cosine", norm_max=1.0, target_recall=target, limits=IndexLimits(**limits)
    )
    return [planned.family for planned in plans]


def test_size_dimension_and_memory_choose() -> None:
    """Small sets are scanned, then graphs, then lists."""
    assert families(5000, 384) == ["exact"]
    assert families(1000, 4096) == ["exact"]
    assert families(20_000, 384) == ["hnsw_flat", "hnsw_sq8", "ivf_pq", "exact"]
    assert families(100_000, 384)[:3] == ["hnsw_sq8", "hnsw_flat", "ivf_pq"]
    assert families(2_000_000, 1536)[0] == "hnsw_sq8"
    assert families(10_000_000, 384) == ["ivf_pq"]
    assert families(1_000_000, 384, index_bytes_max=GIB) == ["hnsw_sq8", "ivf_pq"]
    assert families(1_000_000, 384, index_bytes_max=10_000_000) == []


def test_only_a_scan_has_all_of_the_recall() -> None:
    """No index promises a recall of 1."""
    assert families(20_000, 384, target=1.0) == ["exact"]
    assert families(10_000_000, 384, target=1.0) == []


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_the_planned_bytes_are_those_of_the_index(family: Family, metric: str) -> None:
    """The memory budget is held against what the file will be, within a few percent."""
    rows = np.random.default_rng(0).standard_normal((2000, 96)).astype(np.float32)
    planned = plan_index(family, 2000, 96, metric, 15.0)  # type: ignore[arg-type]
    set_threads(1)
    index = create_index(planned)
    laid = planned.layout.rows(rows)
    index.train(laid)
    index.add(laid)
    size = faiss.serialize_index(index).nbytes
    assert abs(size - planned.bytes) < 0.03 * size + 10_000


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_the_same_rows_give_the_same_bytes(family: Family) -> None:
    """The index and its parameters are the same, whatever the number of threads."""
    rows = real(1200, "cosine")
    first, _ = build(rows, "cosine", family)
    second, _ = build(rows, "cosine", family, threads=4)
    set_threads(1)
    assert first.info == second.info
    assert np.array_equal(faiss.serialize_index(first.index), faiss.serialize_index(second.index))
    assert first.order is not None
    assert np.array_equal(np.sort(first.order), np.arange(1200))


def test_held_out_rows_come_last_and_are_counted() -> None:
    """Recall is measured before they are added."""
    built, searcher = build(real(2000, "cosine"), "cosine", "hnsw_flat", 0.9)
    assert built.recall.queries == 200
    assert built.recall.lower >= 0.9
    assert "held out" in built.recall.method
    assert built.index.ntotal == 2000
    near, _ = searcher.search(searcher.rows, 1)
    assert (near[:, 0] == np.arange(2000)).mean() > 0.95


def test_a_target_out_of_reach_says_what_to_change() -> None:
    """The error has both numbers, and is no publishable index."""
    rows = real(1500, "cosine")
    limits = IndexLimits(ef_search_max=10)
    with pytest.raises(RecallBelowTarget, match="lower target_recall") as failure:
        build_index(
            rows,
            "cosine",
            target_recall=0.999,
            limits=limits,
            progress=lambda *_: None,
            forced="hnsw_flat",
        )
    assert 0.3 < failure.value.recall < failure.value.target == 0.999


def test_no_index_within_the_budget_says_so() -> None:
    """Where nothing fits, the setting is named."""
    limits = IndexLimits(exact_numbers_max=0, exact_fallback_numbers_max=0, index_bytes_max=1)
    with pytest.raises(RecallBelowTarget, match="K9_INDEX_BYTES_MAX"):
        build_index(
            real(1100, "l2"), "l2", target_recall=0.9, limits=limits, progress=lambda *_: None
        )


def test_the_next_plan_is_tried() -> None:
    """Where a graph is too narrow, lists or a scan take over, and the trials tell."""
    limits = IndexLimits(exact_numbers_max=0, ef_search_max=10, probe_share_max=0.01)
    stages: list[str] = []
    built = build_index(
        real(1400, "cosine"),
        "cosine",
        target_recall=0.99,
        limits=msgspec.structs.replace(limits, held_out_min=100),
        progress=lambda at: stages.append(f"{at.stage} {at.done <= at.total}"),
    )
    tried = {trial.family for trial in built.trials}
    assert built.info.family in {"ivf_pq", "exact"}
    assert {"hnsw_flat", "hnsw_sq8"} <= tried
    assert set(stages) <= {"index True", "recall True"}


def test_copies_are_in_the_index_once() -> None:
    """A row that is there a hundred times is one position, and all its rows come back."""
    rows = np.concatenate((real(800, "cosine"), np.tile(real(1, "cosine"), (100, 1))))
    built, searcher = build(rows, "cosine", "hnsw_flat")
    assert built.index.ntotal == 800
    near, found = searcher.search_one(rows[0], 30)
    assert near.tolist() == [0, *range(800, 829)]
    assert set(found.tolist()) == {1.0}
    out = Exclusion(searcher.n, np.arange(800, 890))
    near, _ = searcher.search_one(rows[0], 11, excluded=out)
    assert near.tolist() == [0, *range(890, 900)]
    near, _ = searcher.search_one(rows[0], 3, excluded=out.with_rows(near))
    assert near.shape == (3,)
    assert (near > 0).all()
    assert (near < 800).all()
