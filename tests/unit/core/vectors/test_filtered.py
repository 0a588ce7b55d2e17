from functools import cache
from typing import get_args

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from core.models import Family, Metric
from core.vectors.arrays import Floats, prepare, prepare_one, row_scores
from core.vectors.filtered import Allowed, FilteredSearcher, Plan
from core.vectors.search import Searcher
from tests.unit.core.vectors.sets import FAMILIES, METRICS, build_quickly, catalogue, real

ROWS = 1900
QUERIES = 20
SHARES = (0.003, 0.1, 0.3, 0.95)


@pytest.fixture(scope="module", params=FAMILIES)
def searcher(request: pytest.FixtureRequest) -> Searcher:
    """1,900 real rows; the others are for queries."""
    return build_quickly(real(ROWS, "cosine"), "cosine", request.param, 0.95)[1]


def near_a_row(rows: Floats, share: float, metric: Metric = "cosine") -> NDArray[np.bool_]:
    """A filter that goes along with the vectors: the rows nearest to one of them."""
    scores = row_scores(prepare_one(rows[7], metric), rows)
    mask = np.zeros(rows.shape[0], dtype=np.bool_)
    mask[np.argsort(-scores)[: max(1, round(share * rows.shape[0]))]] = True
    return mask


def at_random(rows: Floats, share: float) -> NDArray[np.bool_]:
    """A filter that has nothing to do with the vectors."""
    drawn = np.random.default_rng(5).random(rows.shape[0])
    mask: NDArray[np.bool_] = np.less(drawn, share)
    return mask


def right(query: Floats, rows: Floats, metric: Metric, mask: NDArray[np.bool_], k: int) -> Floats:
    """The best scores among the allowed rows."""
    return -np.sort(-row_scores(prepare_one(query, metric), rows[mask]))[:k]


def recall(
    searcher: Searcher, mask: NDArray[np.bool_], k: int, plan: Plan | None = None
) -> tuple[float, set[Plan]]:
    """The mean recall of new queries, and the plans that were used; every result is checked."""
    filtered = FilteredSearcher(searcher)
    allowed = Allowed(mask)
    hits, used = [], set()
    for query in prepare(catalogue()[ROWS : ROWS + QUERIES], searcher.metric):
        found = filtered.search_one(query, k, allowed, plan=plan)
        wanted = right(query, searcher.rows, searcher.metric, mask, k)
        assert found.rows.shape == wanted.shape
        assert mask[found.rows].all()
        assert np.unique(found.rows).size == found.rows.size
        exact = row_scores(prepare_one(query, searcher.metric), searcher.rows[found.rows])
        assert (exact == found.scores).all()
        assert (np.diff(found.scores) <= 0).all()
        hits.append((found.scores >= wanted[-1:] - 1e-6).mean() if wanted.size else 1.0)
        used.add(found.plan)
    return float(np.mean(hits)), used


@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("share", SHARES)
def test_recall_holds_at_every_selectivity(
    searcher: Searcher, share: float, *, correlated: bool
) -> None:
    """Whatever the share of rows that match, and wherever they are."""
    mask = (near_a_row if correlated else at_random)(searcher.rows, share)
    for k in (10, 100):
        assert recall(searcher, mask, k)[0] >= 0.93


@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("share", SHARES[1:])
@pytest.mark.parametrize(
    ("family", "plan"),
    [("hnsw_flat", "past"), ("hnsw_flat", "walk"), ("hnsw_sq8", "past"), ("hnsw_sq8", "walk")],
)
def test_each_plan_of_a_graph_finds_the_nearest(
    graphs: dict[Family, Searcher], family: Family, plan: Plan, share: float, *, correlated: bool
) -> None:
    """Forced, where another would be chosen for so few rows; one that finds too few is not used."""
    searcher = graphs[family]
    mask = (near_a_row if correlated else at_random)(searcher.rows, share)
    found, used = recall(searcher, mask, 10, plan)
    assert found >= 0.93
    assert plan in used or (correlated and plan == "past")


@pytest.fixture(scope="module")
def graphs() -> dict[Family, Searcher]:
    """Both families of graphs over the same rows."""
    rows = real(ROWS, "cosine")
    families: tuple[Family, ...] = ("hnsw_flat", "hnsw_sq8")
    return {family: build_quickly(rows, "cosine", family, 0.95)[1] for family in families}


@cache
def of_metric(metric: Metric) -> Searcher:
    """Real rows in one family."""
    return build_quickly(real(ROWS, metric), metric, "hnsw_sq8", 0.95)[1]


@pytest.mark.parametrize("plan", get_args(Plan)[1:])
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric(metric: Metric, plan: Plan) -> None:
    """Rows of uneven lengths under `ip` and `l2` too."""
    searcher = of_metric(metric)
    rows = searcher.rows
    for mask in (near_a_row(rows, 0.3, metric), at_random(rows, 0.3)):
        found, _ = recall(searcher, mask, 10, plan)
        assert found == 1.0 if plan == "scan" else found >= 0.9


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_very_short_and_very_long_vectors(metric: Metric, scale: float) -> None:
    """A scan of allowed rows stays exact where float32 squares are tiny or huge."""
    rows = (real(600, metric) * scale).astype(np.float32)
    searcher = build_quickly(rows, metric, "exact")[1]
    mask = at_random(rows, 0.4)
    filtered = FilteredSearcher(searcher)
    for query in (catalogue()[600:640] * scale).astype(np.float32):
        found = filtered.search_one(query, 10, Allowed(mask))
        assert found.scores.tolist() == right(query, rows, metric, mask, 10).tolist()


def test_no_row_and_every_row(searcher: Searcher) -> None:
    """A filter that nothing matches finds nothing; one that all match is a search without it."""
    filtered = FilteredSearcher(searcher)
    query = prepare_one(catalogue()[ROWS], "cosine").vector
    none = filtered.search_one(query, 10, Allowed(np.zeros(ROWS, dtype=np.bool_)))
    assert none.rows.size == none.scores.size == 0
    every = filtered.search_one(query, 10, Allowed(np.ones(ROWS, dtype=np.bool_)))
    rows, scores = searcher.search_one(query, 10)
    assert every.rows.tolist() == rows.tolist()
    assert every.scores.tolist() == scores.tolist()


@pytest.mark.parametrize("count", [1, 9, 10, 11, 300])
@pytest.mark.parametrize("plan", [None, *get_args(Plan)[1:]])
def test_a_k_over_what_is_allowed(
    graphs: dict[Family, Searcher], count: int, plan: Plan | None
) -> None:
    """All allowed rows come back where they are no more than k, by every plan."""
    searcher = graphs["hnsw_sq8"]
    mask = np.zeros(ROWS, dtype=np.bool_)
    mask[np.random.default_rng(count).permutation(ROWS)[:count]] = True
    found = FilteredSearcher(searcher).search_one(
        prepare_one(catalogue()[ROWS], "cosine").vector, 300, Allowed(mask), plan=plan
    )
    assert sorted(found.rows.tolist()) == np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("count", [11, 42, 43, 256])
def test_few_rows_are_found_exactly(graphs: dict[Family, Searcher], count: int) -> None:
    """Hardly more than asked for, and as many as are scored whatever the index is."""
    searcher = graphs["hnsw_sq8"]
    mask = np.zeros(ROWS, dtype=np.bool_)
    mask[np.random.default_rng(count).permutation(ROWS)[:count]] = True
    few = Allowed.few(np.flatnonzero(mask), ROWS)
    for query in prepare(catalogue()[ROWS : ROWS + 5], "cosine"):
        found = FilteredSearcher(searcher).search_one(query, 10, few)
        assert found.plan == "scan"
        wanted = right(query, searcher.rows, "cosine", mask, 10)
        assert found.scores.tolist() == wanted.tolist()
        assert mask[found.rows].all()


@cache
def with_copies(noise: float) -> Searcher:
    """Real rows, and 200 copies of each of two, which stand in the index once."""
    rows = real(1000, "cosine")
    copies = np.repeat(rows[:2], 200, axis=0)
    copies += (noise * np.random.default_rng(1).standard_normal(copies.shape)).astype(np.float32)
    searcher = build_quickly(np.concatenate((rows, copies)), "cosine", "hnsw_sq8", 0.9)[1]
    assert searcher.members is not None
    return searcher


@pytest.mark.parametrize("noise", [0.0, 1e-6])
@pytest.mark.parametrize("plan", [None, *get_args(Plan)[1:]])
def test_copies_are_allowed_one_by_one(plan: Plan | None, noise: float) -> None:
    """A filter may allow some copies of a product, and not the row that stands for them."""
    searcher = with_copies(noise)
    rows = searcher.rows
    mask = at_random(rows, 0.5)
    mask[:2] = False
    filtered = FilteredSearcher(searcher)
    hits = []
    for query in np.concatenate((rows[:2], real(1100, "cosine")[1000:])):
        found = filtered.search_one(query, 10, Allowed(mask), plan=plan)
        assert mask[found.rows].all()
        assert np.unique(found.rows).size == 10
        assert (found.scores == row_scores(prepare_one(query, "cosine"), rows[found.rows])).all()
        hits.append((found.scores >= right(query, rows, "cosine", mask, 10)[-1] - 1e-6).mean())
    assert min(hits[:2]) == 1.0
    assert np.mean(hits) >= 0.93


def test_the_plan_follows_from_the_number_of_rows() -> None:
    """Few rows are scored, many are asked past, and in between a graph is walked."""
    rows = np.zeros((200_000, 768), dtype=np.float32)
    small = build_quickly(real(ROWS, "cosine"), "cosine", "hnsw_flat", 0.95)[1]
    large = Searcher(
        rows,
        "cosine",
        msgspec.structs.replace(small.info, positions=200_000),
        small.index,
        small.order,
    )
    filtered = FilteredSearcher(large)
    assert filtered.plans(50, 100) == ("scan",)
    assert filtered.plans(1000, 10) == ("scan",)
    assert filtered.plans(30_000, 10)[-1] == "walk"
    assert filtered.plans(100_000, 10) == ("past", "walk")
    assert filtered.plans(200_000, 10) == ("all",)


@pytest.mark.parametrize("masked", [True, False])
def test_rows_are_left_out_of_those_that_are_allowed(*, masked: bool) -> None:
    """The others stay as they were, and are shared where nothing changes."""
    mask = np.array([True, True, False, True])
    allowed = Allowed(mask) if masked else Allowed.few(np.flatnonzero(mask), 4)
    fewer = allowed.without(np.array([1, 2]))
    assert fewer.mask.tolist() == [True, False, False, True]
    assert (fewer.count, allowed.count) == (2, 3)
    assert allowed.without(np.array([2])) is allowed
    assert allowed.without(np.array([], dtype=np.int64)) is allowed


def test_a_search_is_estimated_by_its_plans(graphs: dict[Family, Searcher]) -> None:
    """More allowed rows that are scored take longer, and so do more results."""
    filtered = FilteredSearcher(graphs["hnsw_sq8"])
    estimates = [filtered.estimate_us(count, 10) for count in (0, 1, 100, ROWS // 10)]
    assert estimates == sorted(estimates)
    assert 0 < estimates[0] < estimates[-1]
    assert filtered.estimate_us(ROWS, 500) > filtered.estimate_us(ROWS, 10)


@pytest.mark.parametrize("plan", ["past", "walk"])
def test_a_plan_in_the_graph_is_estimated_by_k_and_share(
    graphs: dict[Family, Searcher], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at more rows for more results, and where fewer of them are allowed."""
    monkeypatch.setattr(FilteredSearcher, "plans", lambda *_: (plan,))
    filtered = FilteredSearcher(graphs["hnsw_sq8"])
    estimate = filtered.estimate_us(ROWS // 2, 10)
    assert 0 < estimate < filtered.estimate_us(ROWS // 2, 100)
    assert estimate < filtered.estimate_us(ROWS // 8, 10)


def test_filters_of_every_size_ask_the_index_for_few_different_numbers(
    graphs: dict[Family, Searcher],
) -> None:
    """A searcher keeps what it made for each, so that they must not be as many as filters."""
    searcher = graphs["hnsw_flat"]
    filtered = FilteredSearcher(searcher)
    query = prepare_one(catalogue()[ROWS], "cosine").vector
    before = len(searcher._plans)  # noqa: SLF001
    for count in range(60, ROWS, 3):
        filtered.search_one(query, 10, Allowed(np.arange(ROWS) < count), plan="past")
    assert len(searcher._plans) - before < 100  # noqa: SLF001
