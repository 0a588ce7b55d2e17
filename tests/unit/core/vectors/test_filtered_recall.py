"""What a manifest tells of filtered searches is what they then find."""

import numpy as np
import pytest

from core.models import Family, Metric
from core.vectors.arrays import prepare_one, row_scores
from core.vectors.filtered import Allowed, FilteredSearcher
from core.vectors.filtered_recall import SHARES_MAX
from core.vectors.parameters import RecallBand, recall_of
from tests.unit.core.vectors.sets import FAMILIES, build, real

ROWS = 2400
QUERIES = 100


@pytest.fixture
def expensive_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few rows would be scanned in any case."""
    monkeypatch.setattr("core.vectors.filtered._SCAN_US", 1.0)


@pytest.mark.parametrize(
    ("family", "metric"),
    [
        ("hnsw_flat", "cosine"),
        ("hnsw_flat", "ip"),
        ("hnsw_sq8", "l2"),
        ("ivf_pq", "cosine"),
        ("ivf_pq", "l2"),
    ],
)
@pytest.mark.usefixtures("expensive_scans")
def test_each_band_is_what_new_queries_find(family: Family, metric: Metric) -> None:
    """Within the error of so few queries, for shares within a band."""
    rows, queries = np.split(real(ROWS + QUERIES, metric), [ROWS])
    rows[:40] = rows[40]  # copies, of which one is in the index
    built, searcher = build(rows, metric, family, 0.8)
    assert [band.share_max for band in built.bands] == list(SHARES_MAX)
    filtered, random = FilteredSearcher(searcher), np.random.default_rng(1)
    for share in (0.07, 0.2, 0.7):
        mask = random.random(ROWS) < share
        allowed = Allowed(mask)
        hits = 0
        for query in queries:
            found = filtered.search_one(query, 10, allowed)
            right = np.sort(row_scores(prepare_one(query, metric), rows[mask]))[-10]
            hits += int((found.scores >= right).sum())
        band = recall_of(built.bands, share)
        assert band is not None
        assert band == pytest.approx(hits / (10 * QUERIES), abs=0.06)
    (widest,) = [band for band in built.bands if band.share_max == 1.0]
    assert widest.queries > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_scanned_is_not_measured(family: Family) -> None:
    """Every allowed row is scored, so nothing is missed."""
    built, _ = build(real(900, "cosine"), "cosine", family, 0.8)
    for band in built.bands:
        assert 0.8 < band.recall <= 1.0
        assert band.queries or band.recall == 1.0
    assert built.bands[0].queries == 0
    if family == "exact":
        assert built.bands == (RecallBand(1.0, 1.0, 0),)


def test_the_same_rows_tell_the_same() -> None:
    """Filters and queries are drawn from a seed, whatever the number of threads."""
    rows = real(ROWS, "cosine")
    first, again = (build(rows, "cosine", "hnsw_flat", 0.8, threads)[0] for threads in (1, 2))
    assert first.bands == again.bands


@pytest.mark.parametrize(
    ("share", "recall"), [(0.0, 1.0), (0.01, 1.0), (0.0101, 0.9), (0.5, 0.9), (1.0, None)]
)
def test_a_share_is_of_the_band_that_holds_it(share: float, recall: float | None) -> None:
    """Up to its largest share, which is in it; beyond the last nothing is known."""
    assert recall_of((RecallBand(0.01, 1.0, 0), RecallBand(0.5, 0.9, 64)), share) == recall
    assert recall_of((), share) is None
