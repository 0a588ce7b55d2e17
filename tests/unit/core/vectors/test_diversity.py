"""Maximal marginal relevance, against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.models import Metric
from core.vectors.arrays import prepare_one, row_scores
from core.vectors.diversity import diverse

NUMBERS = st.integers(-3, 3)
ROWS = st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=12)


def by_definition(
    relevance: list[float], similarity: list[list[float]], k: int, diversity: float
) -> list[int]:
    """The same, one candidate after the other."""
    chosen: list[int] = []
    left = list(range(len(relevance)))
    while left and len(chosen) < k:
        values = {
            each: (1 - diversity) * relevance[each]
            - diversity * max(similarity[each][other] for other in chosen)
            if chosen
            else relevance[each]
            for each in left
        }
        best = max(left, key=lambda each: (values[each], -each))
        chosen.append(best)
        left.remove(best)
    return chosen


@settings(max_examples=300, deadline=None)
@given(
    rows=ROWS,
    data=st.data(),
    k=st.integers(1, 15),
    diversity=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    metric=st.sampled_from(["ip", "l2"]),
    far=st.booleans(),
)
def test_each_result_has_the_largest_marginal_relevance(
    rows: list[list[int]],
    data: st.DataObject,
    k: int,
    diversity: float,
    metric: Metric,
    far: bool,  # noqa: FBT001 - drawn by name
) -> None:
    """For inner products and squared distances of whole numbers, which are exact.

    Distances are so far from the origin too, whose squares float32 does not hold.
    """
    relevance = data.draw(st.lists(NUMBERS, min_size=len(rows), max_size=len(rows)))
    vectors = np.array(rows, dtype=np.float32)
    if far and metric == "l2":
        vectors += np.float32(100_000)
    similarity = [row_scores(prepare_one(vector, metric), vectors).tolist() for vector in vectors]
    found = list(diverse(np.array(relevance, dtype=np.float64), vectors, k, diversity, metric))
    assert found == by_definition(list(map(float, relevance)), similarity, k, diversity)


def test_no_diversity_is_the_order_of_relevance() -> None:
    """Of equal ones, the first comes first."""
    relevance = np.array([0.5, 0.9, 0.5, 0.1])
    rows = np.eye(4, dtype=np.float32)
    assert list(diverse(relevance, rows, 4, 0.0, "cosine")) == [1, 0, 2, 3]


@pytest.mark.parametrize("diversity", [0.3, 0.9])
def test_a_copy_of_a_result_comes_after_something_else(diversity: float) -> None:
    """Though it is nearer to the query."""
    rows = np.array([[1, 0], [1, 0], [0.8, 0.6]], dtype=np.float32)
    relevance = np.array([0.96, 0.96, 0.9])
    assert list(diverse(relevance, rows, 3, diversity, "cosine")) == [0, 2, 1]
