import numpy as np
import pytest

from core.models import Metric
from core.vectors.recall import (
    ZERO_RECALL_MAX,
    ZERO_RECALL_QUERIES,
    ground_truth,
    held_out_rows,
    reaches,
    recall_lower_bound,
    recalls,
    zero_recall_bound,
)
from tests.unit.core.vectors.sets import METRICS, real, truth


@pytest.mark.parametrize(
    ("rows", "count"), [(1, 0), (9, 0), (100, 10), (20_000, 1000), (300_000, 3000)]
)
def test_a_hundredth_is_held_out(rows: int, count: int) -> None:
    """At least 1,000, and of small sets a tenth."""
    held = held_out_rows(rows, least=1000, most=10_000)
    assert held.shape == (count,)
    assert np.unique(held).shape == (count,)
    assert held.tolist() == held_out_rows(rows, least=1000, most=10_000).tolist()


def test_no_pattern_in_the_rows_is_followed() -> None:
    """Every remainder of the row number has its share, whatever ids are sorted by."""
    held = held_out_rows(100_000, least=1000, most=10_000)
    for period in (2, 10, 16):
        assert np.bincount(held % period).min() > 0.6 * 1000 / period


@pytest.mark.parametrize("metric", METRICS)
def test_the_truth_is_what_numpy_says(metric: Metric) -> None:
    """Over all rows, and over those that are kept."""
    rows, queries = real(900, metric), real(940, metric)[900:]
    _, wanted = truth(queries, rows, metric, 15)
    assert np.allclose(ground_truth(queries, rows, None, 15, metric), wanted, rtol=1e-6, atol=1e-6)
    kept = np.arange(0, 900, 3)
    _, wanted = truth(queries, rows[kept], metric, 15)
    assert np.allclose(ground_truth(queries, rows, kept, 15, metric), wanted, rtol=1e-6, atol=1e-6)


def test_the_truth_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are looked at together."""
    rows, queries = real(900, "l2"), real(940, "l2")[900:]
    kept = np.arange(0, 900, 3)
    whole = [ground_truth(queries, rows, counted, 15, "l2") for counted in (None, kept)]
    monkeypatch.setattr("core.vectors.recall._BASE_ROWS", 67)
    parts = [ground_truth(queries, rows, counted, 15, "l2") for counted in (None, kept)]
    assert all(np.allclose(one, other, rtol=1e-6) for one, other in zip(whole, parts, strict=True))


def test_fewer_rows_than_k_are_all_of_the_truth() -> None:
    """Recall is a share of what there is."""
    rows = real(4, "cosine")
    wanted = ground_truth(rows, rows, None, 10, "cosine")
    assert wanted.shape == (4, 4)
    assert recalls(wanted, wanted).tolist() == [1.0] * 4


def test_ties_count_as_hits() -> None:
    """Any of several equal rows is right, and what is missing is not."""
    wanted = np.array([[3.0, 2.0, 1.0, 1.0]], np.float32)
    assert recalls(np.array([[1.0, 1.0, 3.0, 2.0, 1.0]], np.float32), wanted)[0] == 1.0
    assert recalls(np.array([[3.0, 0.5, 0.4, -np.inf]], np.float32), wanted)[0] == 0.25
    assert recalls(np.array([[3.0]], np.float32), wanted)[0] == 0.25


def test_a_promise_needs_room() -> None:
    """A mean at the target promises nothing; a little above it, on enough queries, does."""
    values = np.random.default_rng(0).choice([0.9, 1.0], 1000)
    assert not reaches(values, 0.95)
    assert reaches(values, 0.93)
    assert recall_lower_bound(values) < values.mean()
    assert recall_lower_bound(values[:20]) < values[:20].mean() - 0.02
    assert reaches(np.ones(5), 0.999)
    assert not reaches(np.ones(1000), 1.0)


@pytest.mark.parametrize(
    ("count", "queries", "bound"),
    [(0, 100, 0.03622), (5, 100, 0.11283), (2, 10, 0.55610), (0, 3700, 0.000996), (9, 9, 1.0)],
)
def test_the_bound_of_a_share(count: int, queries: int, bound: float) -> None:
    """As tables of exact binomial limits have it, two-sided at 95 %."""
    assert zero_recall_bound(count, queries) == pytest.approx(bound, rel=1e-3)


def test_as_many_queries_as_it_takes() -> None:
    """None of the first may fail, or 5 of the second; a thousand would say too little."""
    few, many = ZERO_RECALL_QUERIES
    assert zero_recall_bound(0, 1000) > ZERO_RECALL_MAX
    assert zero_recall_bound(0, few) <= ZERO_RECALL_MAX < zero_recall_bound(1, few)
    assert zero_recall_bound(5, many) <= ZERO_RECALL_MAX < zero_recall_bound(6, many)
