import numpy as np
import pytest

from core.models import Metric
from core.vectors.all_pairs import nearest_of_all
from core.vectors.arrays import Floats, prepare, prepare_one, row_scores, top_k
from core.vectors.exact import CandidateSpace
from tests.unit.core.vectors.sets import METRICS


def crowds(metric: Metric) -> Floats:
    """5,000 rows in three blocks: crowds of 30 and of 900 near copies in all of them, and others.

    A float32 product tells hardly any two rows of a crowd apart, a float64 score does.
    """
    random = np.random.default_rng(4)
    rows = random.standard_normal((5000, 24))
    rows[:900] = rows[0] + 1e-6 * random.standard_normal((900, 24))
    rows[900:1800] = np.repeat(rows[900:930], 30, axis=0) + 1e-6 * random.standard_normal((900, 24))
    return prepare(random.permutation(rows).astype(np.float32), metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 12, 70])
def test_each_row_has_its_best_rows(metric: Metric, k: int) -> None:
    """Rows and scores are those of a float64 scan, whether a row is in a crowd or not."""
    rows = crowds(metric)
    done: list[int] = []
    found, scores = nearest_of_all(rows, k, CandidateSpace(rows, metric), 2, done.append)
    for row in range(0, 5000, 29):
        every = row_scores(prepare_one(rows[row], metric), rows)
        best = top_k(every, k)
        assert found[row].tolist() == best.tolist()
        assert scores[row].tolist() == every[best].tolist()
    assert done == sorted(done)
    assert done[-1] == 5000


@pytest.mark.parametrize("rows", [1, 3, 2049])
def test_as_many_as_there_are(rows: int) -> None:
    """Where more are wanted than there are rows, each row has all of them."""
    vectors = prepare(np.random.default_rng(5).standard_normal((rows, 8)).astype(np.float32), "l2")
    found, scores = nearest_of_all(
        vectors, rows + 1, CandidateSpace(vectors, "l2"), 2, lambda _: None
    )
    assert found.shape == scores.shape == (rows, rows)
    assert (np.sort(found, axis=1) == np.arange(rows)).all()
    assert (np.diff(scores, axis=1) <= 0).all()
