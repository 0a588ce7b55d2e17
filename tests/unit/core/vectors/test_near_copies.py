import numpy as np
import pytest

from core.errors import RecallBelowTarget
from core.models import Family, Metric
from core.vectors.arrays import Floats, prepare, prepare_one, row_scores
from core.vectors.builder import build_index
from core.vectors.copies import equal_rows, similar_rows
from core.vectors.families import set_threads
from core.vectors.matrix import exact_matrix
from core.vectors.near_copies import (
    MEMBERS_MIN,
    RADIUS_SHARES,
    distances_between,
    representatives,
    spread,
)
from core.vectors.parameters import IndexLimits
from core.vectors.sampling import QuerySample
from core.vectors.search import Exclusion, Searcher
from tests.unit.core.vectors.sets import FAMILIES, METRICS, build, build_quickly, catalogue, truth

APPROXIMATE = FAMILIES[1:]


def products(count: int, metric: Metric, seed: int = 0) -> Floats:
    """Rows (count, 32) in eight dimensions, with the room between them that real ones have."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, 8)) @ random.standard_normal((8, 32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if metric != "cosine":
        rows *= random.lognormal(0.0, 0.3, (count, 1))
    if metric == "ip":
        rows[0] *= 3  # by product too nothing is nearer to a copy of it than the other copies
    return prepare(rows.astype(np.float32), metric)


def with_copies(
    rows: Floats, metric: Metric, copies: int, noise: float, seed: int = 1
) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Rows and near copies of the first of them, mixed, and which of them are such."""
    random = np.random.default_rng(seed)
    more = rows[0] + noise * random.standard_normal((copies, rows.shape[1]))
    mixed = random.permutation(rows.shape[0] + copies)
    every = np.concatenate((rows, more.astype(np.float32)))[mixed]
    return prepare(every, metric), (mixed >= rows.shape[0]) | (mixed == 0)


def nothing_right(searcher: Searcher, queries: Floats) -> tuple[int, float]:
    """How many queries found none of their ten nearest rows, and the mean recall."""
    _, wanted = truth(queries, searcher.rows, searcher.metric, 10)
    found = np.stack([searcher.search_one(query, 10)[1] for query in queries])
    hits = (found >= wanted[:, -1:] - 1e-6).mean(axis=1)
    return int(np.count_nonzero(hits == 0)), float(hits.mean())


@pytest.mark.parametrize(("seed", "metric"), [*enumerate(METRICS)])
def test_near_copies_hide_nothing(metric: Metric, seed: int) -> None:
    """A third of all rows are one product with noise: each new query still finds what is right."""
    every = products(2500, metric, seed)
    rows, _ = with_copies(every[500:], metric, 1000, 1e-6)
    built, searcher = build(rows, metric, "hnsw_flat")
    none, mean = nothing_right(searcher, every[:500])
    assert none == 0
    assert mean >= 0.9
    assert built.info.near_copies == 1000
    assert built.info.positions == 2000


@pytest.mark.parametrize(
    ("family", "metric", "noise"),
    [  # each pair of them once
        (family, metric, (1e-6, 1e-4, 2e-3)[(first + second) % 3])
        for first, family in enumerate(APPROXIMATE)
        for second, metric in enumerate(METRICS)
    ],
)
def test_each_near_copy_has_its_own_score(family: Family, metric: Metric, noise: float) -> None:
    """A query among the copies gets the nearest of them in order, as if every row was scored."""
    rows, copies = with_copies(products(1200, metric), metric, 300, noise)
    _, searcher = build_quickly(rows, metric, family)
    queries = rows[copies][:20]
    for k in (1, 10, 60):
        together = searcher.search(queries, k)
        for line, query in enumerate(queries):
            near, found = searcher.search_one(query, k)
            exact, right = searcher.search_one(query, k, exact=True)
            assert near.tolist() == exact.tolist()
            wanted = row_scores(prepare_one(query, metric), rows[near]).tolist()
            assert found.tolist() == right.tolist() == wanted
            assert together[0][line].tolist() == near.tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_near_copies_that_are_left_out(metric: Metric) -> None:
    """Rows that changed since the build, or are excluded, are left out one by one."""
    rows, copies = with_copies(products(1200, metric), metric, 300, 1e-4)
    _, searcher = build_quickly(rows, metric, "hnsw_flat")
    numbers = np.flatnonzero(copies)
    query = rows[numbers[7]]
    for gone in (numbers[:1], numbers[5:200], numbers[:-3], numbers):
        out = Exclusion(searcher.n, gone)
        near, found = searcher.search_one(query, 12, excluded=out)
        exact, right = searcher.search_one(query, 12, excluded=out, exact=True)
        assert not set(near.tolist()) & set(gone.tolist())
        left = min(12, numbers.size - gone.size)
        assert near[:left].tolist() == exact[:left].tolist()
        assert found[:left].tolist() == right[:left].tolist()
        assert near.shape == (12,)


@pytest.mark.parametrize("metric", METRICS)
def test_a_chain_is_no_group(metric: Metric) -> None:
    """Rows along a line, each close to the next: a member is close to its representative too."""
    line = np.zeros((3000, 16), np.float32)
    line[:, 0] = 1.0
    line[:, 1] = np.linspace(0, 1, 3000)
    rows = prepare(np.concatenate((line, products(500, metric)[:, :16])), metric)
    groups = similar_rows(rows, metric, RADIUS_SHARES[0])
    assert groups.radii is not None
    apart = distances_between(rows, np.arange(3500), groups.first[groups.of])
    radius = spread(rows, equal_rows(rows).first, metric) / 40
    assert apart.max() <= radius
    assert (apart <= groups.radii[groups.of]).all()
    assert 15 <= np.count_nonzero(groups.radii) < 100
    assert build(rows, metric, "hnsw_flat")[0].recall.value >= 0.9


def test_copies_and_near_copies_of_one_row_are_one_group() -> None:
    """Equal rows and almost equal ones come back together, in order of score and row."""
    rows, copies = with_copies(products(1200, "cosine"), "cosine", 200, 1e-5)
    rows[np.flatnonzero(copies)[::2]] = rows[np.flatnonzero(copies)[0]]
    built, searcher = build_quickly(rows, "cosine", "hnsw_flat")
    assert built.info.positions == 1200
    for query in rows[copies][:4]:
        near, _ = searcher.search_one(query, 150)
        assert near.tolist() == searcher.search_one(query, 150, exact=True)[0].tolist()


def test_a_few_alike_and_real_rows_stay_in_the_index() -> None:
    """A node of a graph has links for them, and real products are served as before."""
    real = catalogue()
    assert similar_rows(real, "cosine", RADIUS_SHARES[1]).trivial
    rows, _ = with_copies(products(1000, "cosine"), "cosine", MEMBERS_MIN - 2, 1e-5)
    assert similar_rows(rows, "cosine", RADIUS_SHARES[0]).trivial
    rows, _ = with_copies(products(1000, "cosine"), "cosine", MEMBERS_MIN - 1, 1e-5)
    assert similar_rows(rows, "cosine", RADIUS_SHARES[0]).near_copies == MEMBERS_MIN - 1


def test_a_large_group_is_never_held_out() -> None:
    """Its rows may be half of all, and are in the index when that is measured."""
    rows, copies = with_copies(products(400, "cosine"), "cosine", 300, 1e-5)
    rows[np.flatnonzero(~copies)[:40]] = rows[np.flatnonzero(~copies)[0]]
    for start in range(0, 300, 10):  # another row is held out each time
        sample = QuerySample(
            np.roll(rows, start, axis=0), "cosine", IndexLimits(), RADIUS_SHARES[0]
        )
        assert 30 <= sample.held_out.size <= 36
        assert sample.copy_queries[2].tolist() == [301, 40]


def test_the_same_rows_give_the_same_groups() -> None:
    """Whatever the threads: a deterministic build depends on it."""
    rows, _ = with_copies(products(3000, "l2"), "l2", 2000, 3e-3)
    numbers = np.arange(rows.shape[0])
    radius = spread(rows, numbers, "l2") / 40
    set_threads(2)
    first = representatives(rows, numbers, radius)
    set_threads(1)
    assert first.tolist() == representatives(rows, numbers, radius).tolist()
    assert np.count_nonzero(first != numbers) > 1000


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_groups_have_the_scale_of_the_rows(scale: float) -> None:
    """Rows of any length, some of which are far away, are grouped by the room between most."""
    rows, copies = with_copies(products(1500, "l2"), "l2", 500, 1e-6)
    far = np.flatnonzero(~copies)[:5]
    rows[far] *= 100
    groups = similar_rows((rows * scale).astype(np.float32), "l2", RADIUS_SHARES[0])
    assert groups.near_copies == 500
    assert groups.near_copies_max == 501


@pytest.mark.parametrize("metric", METRICS)
def test_too_many_queries_that_find_nothing(metric: Metric) -> None:
    """An index whose mean is high is not published when it may fail more than 1 in 1,000."""
    rows, _ = with_copies(products(2000, metric), metric, 2000, 8e-2, seed=3)
    with pytest.raises(RecallBelowTarget, match="found none of their 10 nearest rows"):
        build_index(
            rows,
            metric,
            target_recall=0.5,
            limits=IndexLimits(ef_search_max=10),
            progress=lambda *_: None,
            forced="hnsw_flat",
        )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_crowd_that_is_too_wide_to_be_one_row(seed: int) -> None:
    """Half of the rows are variants of one: they are grouped more widely, or asked for harder."""
    every = products(2500, "cosine", seed)
    rows, _ = with_copies(every[500:], "cosine", 2000, 2e-2)
    assert similar_rows(rows, "cosine", RADIUS_SHARES[0]).near_copies == 0
    built, searcher = build(rows, "cosine", "hnsw_flat")
    zero = built.recall.zero
    assert zero is not None
    assert zero.queries >= 3700
    assert zero.upper <= 0.001
    none, mean = nothing_right(searcher, every[:500])
    assert none <= 1
    assert mean >= 0.9


@pytest.mark.parametrize("metric", METRICS)
def test_the_matrix_of_near_copies(metric: Metric) -> None:
    """Thousands of almost equal rows have each other as neighbours, in order of score and row."""
    rows, copies = with_copies(products(200, metric), metric, 2500, 1e-6)
    matrix = exact_matrix(rows, metric, 5, lambda *_: None)
    for row in [*np.flatnonzero(copies)[:25].tolist(), *np.flatnonzero(~copies)[:5].tolist()]:
        found = row_scores(prepare_one(rows[row], metric), rows)
        found[row] = -np.inf
        wanted = np.lexsort((np.arange(rows.shape[0]), -found))[:5]
        assert matrix.neighbors[row].tolist() == wanted.tolist()
        assert matrix.scores[row].tolist() == found[wanted].tolist()


@pytest.mark.parametrize("noise", [0, 1e-4])
def test_a_group_that_the_graph_does_not_reach_is_not_lost(noise: float) -> None:
    """Far from all others one node is out of reach, and with it a fifth of the rows."""
    every = products(1700, "l2")
    every[500] *= 3
    rows, copies = with_copies(every[500:], "l2", 300, noise)
    limits = IndexLimits(exact_numbers_max=0, held_out_min=100)
    built = build_index(rows, "l2", target_recall=0.9, limits=limits, progress=lambda *_: None)
    searcher = Searcher(rows, "l2", built.info, built.index, built.order, built.members)
    assert nothing_right(searcher, rows[copies][:100])[0] == 0
    assert nothing_right(searcher, every[:500])[0] == 0
