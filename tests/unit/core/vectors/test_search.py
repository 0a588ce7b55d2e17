import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.models import Family, Metric
from core.vectors.arrays import Floats, Ints, prepare_one, row_scores
from core.vectors.families import stored_rows
from core.vectors.parameters import Effort, effort_for
from core.vectors.search import Exclusion, Searcher
from tests.unit.core.vectors.sets import FAMILIES, METRICS, build_quickly, catalogue, real, truth

APPROXIMATE = FAMILIES[1:]


@pytest.fixture(scope="module")
def graph() -> Searcher:
    """1,900 real rows in HNSW; the other 100 are for queries."""
    return build_quickly(real(1900, "cosine"), "cosine", "hnsw_flat", 0.95)[1]


@pytest.fixture(scope="module")
def lists() -> Searcher:
    """The same in IVF-PQ."""
    return build_quickly(real(1900, "cosine"), "cosine", "ivf_pq", 0.95)[1]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch, graph: Searcher, lists: Searcher) -> list[Searcher]:
    """Both, asking the index even where a scan of so few rows would be cheaper."""
    monkeypatch.setattr("core.vectors.search._SCAN_RATIO", 1)
    monkeypatch.setattr("core.vectors.search._RERANK_RATIO", 1)
    return [Searcher(s.rows, s.metric, s.info, s.index, s.order, s.members) for s in (graph, lists)]


def recall(found: Floats, wanted: Floats) -> float:
    """The share of found scores that are as good as the last true one."""
    return float((found >= wanted[:, -1:]).mean())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_serves_every_metric(family: Family, metric: Metric) -> None:
    """Recall on fresh queries reaches the target, and scores are those of the float32 rows.

    Asked for, an exact scan gives the true rows whatever the index.
    """
    rows = real(1000, metric)
    queries = catalogue()[1000:1400]
    built, searcher = build_quickly(rows, metric, family, 0.9)
    right, wanted = truth(queries, rows, metric, 25)
    near, found = searcher.search(queries, 25, exact=True)
    assert near.tolist() == right.tolist()
    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    wanted = wanted[:, :10]
    near, found = searcher.search(queries, 10)
    assert built.info.family == family
    assert recall(found, wanted - 1e-6) >= 0.9
    assert (np.diff(found, axis=1) <= 0).all()
    for query, line, values in zip(queries[:20], near[:20], found[:20], strict=True):
        assert len(set(line.tolist())) == 10
        final = row_scores(prepare_one(query, metric), rows[line])
        assert np.allclose(final, values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_by_one_is_the_same_as_together(family: Family) -> None:
    """A batch answers each of its queries as if it had come alone."""
    rows = real(900, "ip")
    _, searcher = build_quickly(rows, "ip", family)
    queries = catalogue()[900:930]
    near, found = searcher.search(queries, 7)
    for position, query in enumerate(queries):
        alone, values = searcher.search_one(query, 7)
        assert alone.tolist() == near[position].tolist()
        assert values.tolist() == found[position].tolist()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_tiny_sets_and_more_than_there_is(family: Family, metric: Metric, count: int) -> None:
    """A k over n gives all n, padded in a batch and short alone."""
    rows = real(count, metric)
    _, searcher = build_quickly(rows, metric, family)
    near, found = searcher.search(rows, count + 3)
    assert (np.sort(near[:, :count], axis=1) == np.arange(count)).all()
    assert (near[:, count:] == -1).all()
    assert np.isneginf(found[:, count:]).all()
    alone, _ = searcher.search_one(rows[0], 1000)
    assert sorted(alone.tolist()) == list(range(count))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 5, 400])
def test_rows_that_are_all_the_same(family: Family, metric: Metric, count: int) -> None:
    """Copies of one vector tie, and ties go to the lower rows where all are looked at."""
    rows = np.tile(real(1, metric), (count, 1))
    built, searcher = build_quickly(rows, metric, family, 0.95)
    assert built.recall.value == 1.0
    near, found = searcher.search_one(rows[0], 3)
    assert near.shape[0] == min(3, count)
    assert len(set(found.tolist())) == 1
    exact, _ = searcher.search_one(rows[0], 3, exact=True)
    assert exact.tolist() == list(range(min(3, count)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", APPROXIMATE)
def test_copies_among_real_rows_do_not_break_an_index(family: Family, metric: Metric) -> None:
    """A product listed a hundred times is one of many, and the others are still found."""
    rows = np.concatenate((real(800, metric), np.tile(real(3, metric), (100, 1))))
    queries = catalogue()[800:1000]
    _, searcher = build_quickly(rows, metric, family, 0.9)
    _, wanted = truth(queries, rows, metric, 10)
    _, found = searcher.search(queries, 10)
    assert recall(found, wanted - 1e-6) >= 0.9


@pytest.mark.parametrize(
    ("family", "metric", "scale"),
    [  # each pair of them once
        (family, metric, (1e-15, 1e15)[(first + second) % 2])
        for first, family in enumerate(FAMILIES)
        for second, metric in enumerate(["ip", "l2"])
    ],
)
def test_very_short_and_very_long_vectors(family: Family, metric: Metric, scale: float) -> None:
    """The squares of what is stored need not fit float32's precision for the order to hold."""
    rows = (real(700, metric) * scale).astype(np.float32)
    queries = (catalogue()[700:1000] * scale).astype(np.float32)
    _, searcher = build_quickly(rows, metric, family, 0.9)
    _, wanted = truth(queries, rows, metric, 10)
    _, found = searcher.search(queries, 10)
    slack = np.abs(wanted).max() * 1e-6
    assert recall(found, wanted - slack) >= 0.88


@pytest.mark.parametrize("excluded", [1, 9, 60, 700, 1895, 1900])
def test_rows_left_out_do_not_come_back(eager: list[Searcher], excluded: int) -> None:
    """The nearest rows are left out, and recall among the others is what it was."""
    queries = catalogue()[1900:2000]
    ranked, _ = truth(queries, eager[0].rows, "cosine", 1900)
    for searcher in eager:
        hits = []
        for query, order in zip(queries[:40], ranked, strict=False):
            out = Exclusion(searcher.n, order[:excluded])
            near, _ = searcher.search_one(query, 10, excluded=out)
            wanted = order[excluded : excluded + 10]
            assert near.shape == wanted.shape
            assert not set(near.tolist()) & set(order[:excluded].tolist())
            hits.append(np.isin(near, wanted).sum() / max(1, wanted.shape[0]))
        if excluded < 1900:
            assert np.mean(hits) >= 0.93


def test_an_index_that_finds_too_few_beside_those_left_out_is_scanned(
    eager: list[Searcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a graph may be out of reach, and lists short."""
    query = catalogue()[1900]
    order = truth(query[None], eager[0].rows, "cosine", 1900)[0][0]
    whole = Searcher.candidates

    def ask(self: Searcher, *asked: Any) -> Ints:
        positions = whole(self, *asked)
        positions[:, 4:] = -1
        return positions

    monkeypatch.setattr(Searcher, "candidates", ask)
    for searcher in eager:
        near, _ = searcher.search_one(query, 10, excluded=Exclusion(searcher.n, order[:1]))
        assert near.tolist() == order[1:11].tolist()


def test_thousands_of_rows_left_out_at_random(graph: Searcher) -> None:
    """Rows that changed since the build are anywhere."""
    queries = catalogue()[1900:2000]
    gone = np.random.default_rng(1).permutation(1900)[:900]
    out = Exclusion(graph.n, gone)
    left = np.setdiff1d(np.arange(1900), gone)
    _, wanted = truth(queries, graph.rows[left], "cosine", 10)
    near, found = graph.search(queries, 10, excluded=out)
    assert not np.isin(near, gone).any()
    assert recall(found, wanted - 1e-6) >= 0.95
    assert out.count == 900


def test_a_few_more_rows_left_out(graph: Searcher) -> None:
    """What one request excludes is added to what is masked for all, which stays as it was."""
    query = catalogue()[1950]
    near, _ = graph.search_one(query, 4)
    base = Exclusion(graph.n, near[:1])
    more = base.with_rows(near[:3]).with_rows(near[1:2])
    assert (base.count, more.count) == (1, 3)
    assert [row in more for row in near.tolist()] == [True, True, True, False]
    for exact in (False, True):
        assert graph.search_one(query, 1, excluded=base, exact=exact)[0][0] == near[1]
        assert graph.search_one(query, 1, excluded=more, exact=exact)[0][0] == near[3]


def test_many_neighbours(eager: list[Searcher]) -> None:
    """A k of hundreds has the recall of a k of 10, or nearly."""
    queries = catalogue()[1900:1950]
    _, wanted = truth(queries, eager[0].rows, "cosine", 1000)
    for searcher in eager:
        for k in (30, 100, 1000):
            near, found = searcher.search(queries, k)
            assert (near >= 0).all()
            assert recall(found, wanted[:, :k] - 1e-6) >= 0.93


def test_searching_from_many_threads(graph: Searcher) -> None:
    """Searches side by side answer as they do one after the other."""
    queries = catalogue()[1900:2000]
    out = Exclusion(graph.n, np.arange(0, 1900, 7))

    def ask(position: int) -> list[int]:
        excluded = out if position % 2 else None
        near, _ = graph.search_one(queries[position], 5 + position % 9, excluded=excluded)
        return list(near.tolist())

    one_by_one = [ask(position) for position in range(100)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, [*range(100)] * 3)) == one_by_one * 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_scan_with_rows_left_out(data: st.DataObject) -> None:
    """Scans leave out just what is excluded, for any sets and any k."""
    n = data.draw(st.integers(1, 40))
    values = data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    rows = np.array([[value, 1.0] for value in values], np.float32)
    gone = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), np.int64)
    k = data.draw(st.integers(1, 50))
    _, searcher = build_quickly(rows, "l2", "exact")
    query = np.array([data.draw(st.integers(-3, 3)), 1.0], np.float32)
    near, found = searcher.search_one(query, k, excluded=Exclusion(n, gone))
    everything = row_scores(prepare_one(query, "l2"), rows)
    left = [row for row in range(n) if row not in gone]
    wanted = sorted(left, key=lambda row: (-everything[row], row))[:k]
    assert near.tolist() == wanted
    assert found.tolist() == everything[wanted].tolist()


def test_effort_grows_with_k() -> None:
    """Between the two tuned k it is on a line, beyond them in proportion, and below them flat."""
    efforts = (Effort(10, 40, 20), Effort(100, 130, 200))
    assert effort_for(efforts, 3) == (40, 20)
    assert effort_for(efforts, 10) == (40, 20)
    assert effort_for(efforts, 55) == (85, 110)
    assert effort_for(efforts, 100) == (130, 200)
    assert effort_for(efforts, 1000) == (1300, 2000)
    assert effort_for(efforts[:1], 20) == (80, 40)


def test_few_rows_are_copied_where_those_of_a_mapped_graph_are_not_aligned(
    monkeypatch: pytest.MonkeyPatch, graph: Searcher
) -> None:
    """Within a file they begin anywhere; numpy may then copy all of them to take a few."""
    stored = stored_rows(graph.index)
    assert stored is not None
    moved = np.empty(stored.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(stored.shape)
    moved[:] = stored
    assert not moved.flags.aligned
    monkeypatch.setattr("core.vectors.search.stored_rows", lambda _: moved)
    searcher = Searcher(graph.rows, graph.metric, graph.info, graph.index, graph.order)
    query = real(2000, "cosine")[-1]
    searcher.search_one(query, 10)
    tracemalloc.start()
    rows, scores = searcher.search_one(query, 10)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < stored.nbytes // 10
    same_rows, same_scores = graph.search_one(query, 10)
    assert np.array_equal(rows, same_rows)
    assert np.array_equal(scores, same_scores)
