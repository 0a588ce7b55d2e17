"""Searching by examples."""

import numpy as np
import pytest

from core.models import Metric
from core.vectors.arrays import Floats, check_vector, prepare_one
from core.vectors.examples import mean_vector, penalties

METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")


def floats(*numbers: float) -> Floats:
    """A vector."""
    return np.array(numbers, dtype=np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_one_example_is_itself(metric: Metric) -> None:
    """Number for number, so that it finds what a search by it finds."""
    example = floats(0.1, 3, -7)
    assert mean_vector([example], [], metric) is example


def test_the_mean_is_moved_away_from_negative_examples() -> None:
    """Under cosine each example counts the same, however long it is."""
    positive = [floats(1, 0), floats(3, 4)]
    assert mean_vector(positive, [], "ip").tolist() == [2, 2]
    assert mean_vector(positive, [floats(1, 3)], "l2").tolist() == [3, 1]
    found = mean_vector(positive, [floats(0, 9)], "cosine")
    assert found.tolist() == pytest.approx([1.6, -0.2])


def test_examples_that_cancel_each_other_out_have_no_direction() -> None:
    """Which the check of a vector says."""
    mean = mean_vector([floats(1, 0.3), floats(-2, -0.6)], [], "cosine")
    assert check_vector(mean, "cosine", 2) == "has norm 0, which has no direction under cosine"
    far = [floats(1e18, 0)]
    problem = check_vector(mean_vector(far, [floats(-1e18, 0)], "ip"), "ip", 2)
    assert problem is not None
    assert problem.startswith("has a norm of 3e+18")


def test_what_is_nearer_to_a_negative_example_loses_the_difference() -> None:
    """And nothing else loses anything."""
    rows = np.array([[1, 0], [0, 1], [2, 1]], dtype=np.float32)
    scores = np.array([1.0, 0.0, 2.0])  # inner products with (1, 0)
    negative = [prepare_one(floats(0, length), "ip") for length in (1, 3)]
    assert penalties(scores, rows, negative).tolist() == [0, 3, 1]
