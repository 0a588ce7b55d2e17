"""What changed since a build: an answer is that of an index over the rows as they are."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.serving.delta import ABSENT, MASKED, UNCHANGED, DeltaBuffer
from api.serving.segment import Hits, Segment
from api.serving.snapshot import Snapshot
from core.models import Embedding, Metric
from core.vectors.arrays import Floats, prepare, prepare_one, row_scores
from tests.unit.api.serving.versions import DIMENSION, make, model_of

BEFORE = "2026-01-01T00:00:00.000000Z"
WATERMARK = "2026-02-01T00:00:00.000000Z"
AFTER = "2026-03-01T00:00:00.000000Z"
METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")
IDS = tuple(f"p{number:02d}" for number in range(24))
NEW = ("a", "p05x", "zz", "ü", "𐍈")
# A few vectors, so that many rows are equal and many scores tie.
VECTORS = np.array(
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [2, 0, 0, 0], [0, 0, 1, -1], [1, 1, 1, 1]],
    dtype=np.float32,
)
BAD: dict[str, bytes] = {
    "zero": np.zeros(DIMENSION, np.float32).tobytes(),
    "infinite": np.full(DIMENSION, np.inf, np.float32).tobytes(),
    "short": b"\x00" * 4,
}
Truth = dict[str, Floats]


def _stored() -> Truth:
    return {name: VECTORS[number % len(VECTORS)] for number, name in enumerate(IDS)}


@cache
def _index(metric: Metric, count: int = len(IDS)) -> Segment:
    directory = Path(mkdtemp())
    rows = np.stack(list(_stored().values()))[:count]
    manifest = make(directory, "b-1", IDS[:count], rows=rows, metric=metric, watermark=WATERMARK)
    return Segment.open(directory / "out", manifest, model_of("b-1"))


def _row(product_id: str, vector: bytes | None, moment: str = AFTER) -> Embedding:
    dimension = len(vector or b"") // 4
    return Embedding(product_id, "m", vector, dimension, moment, None if vector else moment)


def _nearest(
    truth: Truth, query: Floats, metric: Metric, k: int, without: Sequence[str] = ()
) -> Hits:
    """Exact search over the rows as they are."""
    names = [name for name in truth if name not in without]
    if not names:
        return Hits([], [])
    rows = prepare(np.stack([truth[name] for name in names]), metric)
    found = row_scores(prepare_one(query, metric), rows).tolist()
    pairs = sorted((-score, name) for name, score in zip(names, found, strict=True))
    return Hits([name for _, name in pairs[:k]], [-score for score, _ in pairs[:k]])


Step = tuple[str, int | Literal["delete", "zero", "infinite", "short"]]
_steps = st.lists(
    st.tuples(
        st.sampled_from([*IDS, *NEW]),
        st.one_of(
            st.integers(0, len(VECTORS) - 1),
            st.sampled_from(["delete", "zero", "infinite", "short"]),
        ),
    ),
    max_size=40,
)


def _applied(buffer: DeltaBuffer, steps: Sequence[Step], at_once: int) -> Truth:
    """Applies the steps to the buffer and to the rows as they are, which come back."""
    truth = _stored()
    for start in range(0, len(steps), at_once):
        found: dict[str, Embedding | None] = {}
        for product_id, what in steps[start : start + at_once]:
            if isinstance(what, int):
                truth[product_id] = VECTORS[what]
                found[product_id] = _row(product_id, VECTORS[what].tobytes())
            else:
                bad_here = what != "zero" or buffer.segment.metric == "cosine"
                if bad_here:
                    truth.pop(product_id, None)
                else:
                    truth[product_id] = np.zeros(DIMENSION, np.float32)
                found[product_id] = _row(product_id, BAD.get(what))
        buffer.apply(found)
    return truth


@settings(max_examples=150, deadline=None)
@given(
    metric=st.sampled_from(METRICS),
    steps=_steps,
    at_once=st.integers(1, 7),
    queries=st.lists(st.integers(0, len(VECTORS) - 1), min_size=1, max_size=3),
    k=st.sampled_from([1, 3, 10, 100]),
    exclude=st.lists(st.sampled_from([*IDS, *NEW, "none"]), max_size=5),
    exact=st.booleans(),
)
def test_a_search_is_that_of_an_index_over_the_rows_as_they_are(
    metric: Metric,
    steps: list[Step],
    at_once: int,
    queries: list[int],
    k: int,
    exclude: list[str],
    exact: bool,  # noqa: FBT001
) -> None:
    """Whatever was written, overwritten, deleted or written badly since, by whatever is asked."""
    buffer = DeltaBuffer(_index(metric))
    truth = _applied(buffer, steps, at_once)
    snapshot = Snapshot(buffer.segment, buffer.snapshot(), complete=True)
    vectors = [VECTORS[number] for number in queries]
    refs = [ref for ref in map(snapshot.find, exclude) if ref is not None]
    found = snapshot.search(vectors, k, exact=exact, exclude=refs)
    assert found == [_nearest(truth, vector, metric, k, exclude) for vector in vectors]
    ranked = found[0].scores
    least = ranked[len(ranked) // 2] if ranked else 0.0
    kept = snapshot.search(vectors[:1], k, exclude=refs, min_score=least)[0]
    count = sum(score >= least for score in ranked)
    assert kept == Hits(found[0].product_ids[:count], ranked[:count])
    before = _stored()
    assert buffer.changed == sum(
        not _equal(before.get(name), truth.get(name), metric) for name in {*before, *truth}
    )


def _equal(one: Floats | None, other: Floats | None, metric: Metric) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(prepare(one[None], metric), prepare(other[None], metric))


@settings(max_examples=150, deadline=None)
@given(
    metric=st.sampled_from(METRICS),
    steps=_steps,
    asked=st.sampled_from([*IDS, *NEW]),
    k=st.sampled_from([1, 2, 3, 10, 100]),
)
def test_neighbours_are_those_of_the_rows_as_they_are(
    metric: Metric, steps: list[Step], asked: str, k: int
) -> None:
    """By the product's present vector, from the matrix or not; a deleted product has none."""
    buffer = DeltaBuffer(_index(metric))
    truth = _applied(buffer, steps, 3)
    snapshot = Snapshot(buffer.segment, buffer.snapshot())
    ref = snapshot.find(asked)
    assert (ref is not None) == (asked in truth)
    if ref is None:
        return
    expected = _nearest(truth, truth[asked], metric, k, [asked])
    found = snapshot.matrix_neighbors(ref, k)
    assert found in (None, expected)
    assert snapshot.search_near(ref, k) == expected
    assert snapshot.search([snapshot.vector(ref)], k, exclude=[ref])[0] == expected


@settings(max_examples=80, deadline=None)
@given(metric=st.sampled_from(METRICS), steps=_steps, later=_steps)
def test_a_buffer_moves_to_a_newer_version_without_loss(
    metric: Metric, steps: list[Step], later: list[Step]
) -> None:
    """Also to one that was pulled before the changes, and while further ones come."""
    older, newer = DeltaBuffer(_index(metric)), DeltaBuffer(_index(metric, 11))
    _applied(older, steps, 5)
    ids = list(older.entries)
    newer.carry_over(older, ids[:3])
    truth = _applied(older, [*steps, *later], 4)
    for product_id, entry in older.entries.items():  # what is read from now on reaches both
        if product_id in {name for name, _ in later}:
            vector = older.vector(product_id)
            newer.apply(
                {
                    product_id: _row(
                        product_id, None if vector is None else vector.tobytes(), entry.updated_at
                    )
                }
            )
    newer.carry_over(older, list(older.entries))
    stored = set(IDS[:11])
    present = {name: row for name, row in truth.items() if name in stored or name in older.entries}
    snapshot = Snapshot(newer.segment, newer.snapshot())
    for query in VECTORS:
        assert snapshot.search([query], 100)[0] == _nearest(present, query, metric, 100)


def test_a_snapshot_does_not_change_under_a_search() -> None:
    """Rows that come after it was made, overwrite its own, or move them, are not in it."""
    buffer = DeltaBuffer(_index("cosine"))
    buffer.apply({"a": _row("a", VECTORS[4].tobytes())})
    snapshot = Snapshot(buffer.segment, buffer.snapshot())
    before = snapshot.search([VECTORS[4]], 5)
    for number in range(600):
        vector = np.array([1, number, 0, 0], np.float32)
        buffer.apply({name: _row(name, vector.tobytes()) for name in ("a", f"x{number % 40}")})
    assert len(buffer.entries) == 41
    assert buffer.resident_bytes < 100_000
    assert snapshot.search([VECTORS[4]], 5) == before
    now = Snapshot(buffer.segment, buffer.snapshot())
    assert now.search([VECTORS[4]], 5) != before


def test_rows_as_the_index_has_them_are_no_changes() -> None:
    """A build right after an import finds all of it changed since its watermark, and none new."""
    buffer = DeltaBuffer(_index("cosine"))
    page = [_row(name, (3 * vector).tobytes()) for name, vector in _stored().items()]
    assert buffer.differing(page) == []
    assert buffer.differing([_row("p00", None), _row("new", VECTORS[0].tobytes())]) == [
        "p00",
        "new",
    ]
    buffer.apply({row.product_id: row for row in page})
    assert (buffer.changed, buffer.snapshot().has_effect) == (0, False)
    assert {entry.row for entry in buffer.entries.values()} == {UNCHANGED}
    assert buffer.differing(page) == []
    buffer.forget("2027")
    assert buffer.entries == {}


def test_what_has_no_effect_is_forgotten_and_nothing_else() -> None:
    """The index row of a deleted product stays hidden, however long ago that was."""
    buffer = DeltaBuffer(_index("cosine"))
    buffer.apply(
        {
            "p00": _row("p00", None, BEFORE),
            "gone": _row("gone", None),
            "older": _row("older", None, BEFORE),
            "never": None,
            "p01": None,
            "p02": _row("p02", VECTORS[2].tobytes(), BEFORE),
        }
    )
    rows = {name: entry.row for name, entry in buffer.entries.items()}
    assert rows == {"p00": MASKED, "gone": ABSENT, "p01": MASKED}
    buffer.forget("2027")
    assert set(buffer.entries) == {"p00", "p01"}
    assert buffer.changed == 2


@pytest.mark.parametrize("metric", METRICS)
def test_a_large_buffer_is_searched_exactly(metric: Metric) -> None:
    """Over many chunks, with superseded rows between them."""
    random = np.random.default_rng(5)
    buffer = DeltaBuffer(_index(metric))
    truth = _stored()
    for turn in range(4):
        names = [f"n{number:04d}" for number in range(turn * 100, turn * 100 + 400)]
        rows = random.normal(size=(400, DIMENSION)).astype(np.float32)
        found: dict[str, Embedding | None] = {}
        for name, row in zip(names, rows, strict=True):
            truth[name] = row
            found[name] = _row(name, row.tobytes())
        buffer.apply(found)
    snapshot = Snapshot(buffer.segment, buffer.snapshot(), complete=True)
    assert snapshot.provenance.fresh == 700
    for query in random.normal(size=(20, DIMENSION)).astype(np.float32):
        assert snapshot.search([query], 25)[0] == _nearest(truth, query, metric, 25)
