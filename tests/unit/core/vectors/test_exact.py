import numpy as np
import pytest

from core.models import Metric
from core.vectors.exact import KnownScores, rescore
from tests.unit.core.vectors.sets import METRICS, real


@pytest.mark.parametrize("metric", METRICS)
def test_scores_known_from_before_are_those_computed_anew(metric: Metric) -> None:
    """Whichever rows were asked for before, in whichever order, and where there are fewer."""
    rows = real(300, metric)
    queries = rows[:20]
    known = KnownScores(queries, rows, metric)
    random = np.random.default_rng(0)
    for count, width in ((20, 3), (20, 40), (7, 40), (20, 300)):
        asked = np.stack([random.permutation(300)[:width] for _ in range(count)])
        asked[random.random(asked.shape) < 0.1] = -1
        for candidates in (asked, np.flip(asked, axis=1)):
            found = known.rescore(candidates)
            assert np.array_equal(found, rescore(queries[:count], rows, candidates, metric))
