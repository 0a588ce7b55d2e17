import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.models import Metric, Progress
from core.vectors.arrays import prepare, prepare_one, row_scores
from core.vectors.matrix import exact_matrix, index_matrix
from tests.unit.core.vectors.sets import METRICS, build, real, truth


@pytest.mark.parametrize("metric", METRICS)
def test_the_matrix_is_exact_top_k(metric: Metric) -> None:
    """Each row's neighbours are what plain numpy finds, itself left out."""
    rows = real(1500, metric)
    reported: list[Progress] = []
    matrix = exact_matrix(rows, metric, 20, reported.append)
    order, _ = truth(rows, rows, metric, 22)
    for row in range(1500):
        wanted = [other for other in order[row].tolist() if other != row][:20]
        near = matrix.neighbors[row]
        values = row_scores(prepare_one(rows[row], metric), rows[wanted])
        assert np.array_equal(matrix.scores[row], values)
        assert np.array_equal(row_scores(prepare_one(rows[row], metric), rows[near]), values)
    assert reported[-1] == Progress("matrix", 1500, 1500)
    assert matrix.exact


def test_threads_change_no_byte() -> None:
    """The same rows give the same matrix, however many threads there are."""
    rows = real(4500, "cosine")
    made = [exact_matrix(rows, "cosine", 20, lambda *_: None, threads) for threads in (1, 3)]
    assert made[0].neighbors.tobytes() == made[1].neighbors.tobytes()
    assert made[0].scores.tobytes() == made[1].scores.tobytes()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 3)), min_size=1, max_size=30),
    st.integers(1, 8),
    st.sampled_from(METRICS),
)
def test_copies_and_ties_are_in_order(
    values: list[tuple[int, int]], k: int, metric: Metric
) -> None:
    """For any rows, most of them equal, the order is (-score, row) and the row itself is not in."""
    rows = prepare(np.array(values, np.float32), metric)
    matrix = exact_matrix(rows, metric, k, lambda *_: None)
    for row in range(len(values)):
        found = row_scores(prepare_one(rows[row], metric), rows)
        others = [other for other in range(len(values)) if other != row]
        wanted = sorted(others, key=lambda other: (-found[other], other))[:k]
        padding = [-1] * (k - len(wanted))
        assert matrix.neighbors[row].tolist() == wanted + padding
        assert matrix.scores[row].tolist() == [*found[wanted].tolist(), *[-np.inf] * len(padding)]


@pytest.mark.parametrize("metric", METRICS)
def test_thousands_of_copies(metric: Metric) -> None:
    """A set of one vector has its lowest rows as neighbours, at once."""
    rows = np.tile(real(1, metric), (5000, 1))
    matrix = exact_matrix(rows, metric, 5, lambda *_: None)
    assert matrix.neighbors[0].tolist() == [1, 2, 3, 4, 5]
    assert matrix.neighbors[3].tolist() == [0, 1, 2, 4, 5]
    assert matrix.neighbors[4999].tolist() == [0, 1, 2, 3, 4]


def test_distances_far_from_the_origin() -> None:
    """The expanded square would lose all digits here."""
    rows = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)
    far = rows + np.float32(1000)
    matrix = exact_matrix(far, "l2", 3, lambda *_: None)
    order, _ = truth(far, far, "l2", 4)
    assert matrix.neighbors.tolist() == order[:, 1:].tolist()


def test_the_index_makes_it_and_tells_its_recall() -> None:
    """Above the limit recall is measured, and is what it says."""
    rows = np.concatenate((real(4500, "cosine"), real(30, "cosine")))
    _, searcher = build(rows, "cosine", "hnsw_flat", 0.95)
    made = index_matrix(rows, searcher, 10, lambda *_: None)
    exact = exact_matrix(rows, "cosine", 10, lambda *_: None)
    hits = (made.scores >= exact.scores[:, -1:]).mean()
    assert not made.exact
    assert made.recall is not None
    assert made.recall >= 0.95
    assert abs(hits - made.recall) < 0.02
    assert (made.neighbors != np.arange(4530)[:, None]).all()
