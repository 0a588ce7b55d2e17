"""Recall of answers against exact search."""

import numpy as np
import pytest

from tests.benchmarks.exact import K, Truth

random = np.random.default_rng(3)
ROWS = random.standard_normal((200, 8)).astype(np.float32)
QUERIES = random.standard_normal((3, 8)).astype(np.float32)
IDS = [f"p{number}" for number in range(len(ROWS))]
UNIT = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
RIGHT = [[IDS[row] for row in np.argsort(-(UNIT @ query))[:K]] for query in QUERIES]


def test_recall_is_the_share_of_what_is_right() -> None:
    """All of it is 1, and one row in place of another takes a tenth of a query's."""
    truth = Truth(IDS, ROWS, QUERIES)
    assert truth.recall(RIGHT) == 1.0
    worst = IDS[int(np.argmin(UNIT @ QUERIES[0]))]
    assert truth.recall([[*RIGHT[0][:-1], worst], *RIGHT[1:]]) == pytest.approx(29 / 30)
    assert truth.recall([[], *RIGHT[1:]]) == pytest.approx(2 / 3)


def test_answers_that_are_none_are_refused() -> None:
    """A product that came twice, an unknown one, or a query without an answer."""
    truth = Truth(IDS, ROWS, QUERIES)
    with pytest.raises(ValueError, match="twice"):
        truth.recall([[IDS[0], IDS[0]], *RIGHT[1:]])
    with pytest.raises(ValueError, match="2 answers to 3 queries"):
        truth.recall(RIGHT[1:])
    with pytest.raises(KeyError):
        truth.recall([["unknown"], *RIGHT[1:]])
