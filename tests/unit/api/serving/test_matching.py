"""Filtered searches: whatever changed since a build, they find what matches, and nothing else."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.serving.delta import DeltaBuffer
from api.serving.segment import Hits, Segment
from api.serving.snapshot import Snapshot
from core.attributes.filters import parse_filter
from core.attributes.values import encode_attributes
from core.index.version import MappedVersion
from core.models import Embedding, Family, StoredAttributes
from core.vectors import filtered
from core.vectors.arrays import Floats, prepare, prepare_one, row_scores
from core.vectors.parameters import RecallBand
from tests.unit.api.serving.versions import DIMENSION, make
from tests.unit.core.attributes.test_columns import ATTRIBUTES, FILTERS, expected

WATERMARK = "2026-02-01T00:00:00.000000Z"
AFTER = "2026-03-01T00:00:00.000000Z"
IDS = tuple(f"p{number:02d}" for number in range(16))
NEW = ("a", "p05x", "zz")
VECTORS = np.array(
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [2, 0, 0, 0], [0, 0, 1, -1], [1, 1, 1, 1]],
    dtype=np.float32,
)
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"a": 1, "b": "red"},
    {"a": "1", "c": ["red", "blue"]},
    {"b": True, "a": 0.5},
)
Truth = dict[str, tuple[Floats, dict[str, Any]]]
Step = tuple[str, int | None, dict[str, Any] | None]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*IDS, *NEW]),
        st.one_of(st.integers(0, len(VECTORS) - 1), st.none()),
        st.one_of(st.none(), ATTRIBUTES),
    ),
    max_size=30,
)


@cache
def index(family: Family | None = None) -> Segment:
    """A segment of the products, with their attributes."""
    directory = Path(mkdtemp())
    rows = VECTORS[np.arange(len(IDS)) % len(VECTORS)]
    manifest = make(
        directory,
        "b-1",
        IDS,
        rows=rows,
        watermark=WATERMARK,
        family=family,
        attributes={name: own for name, (_, own) in built().items()},
    )
    return Segment(MappedVersion.open(directory / "out", manifest), 1)


def built() -> Truth:
    """The products as they were built."""
    return {
        name: (VECTORS[number % len(VECTORS)], KINDS[number % len(KINDS)])
        for number, name in enumerate(IDS)
    }


def applied(buffer: DeltaBuffer, truth: Truth, steps: Sequence[Step], at_once: int) -> None:
    """Applies changes to the buffer and to the truth.

    A vector with or without attributes is stored; attributes without a vector change one that is
    there; neither deletes.
    """
    for start in range(0, len(steps), at_once):
        rows: dict[str, Embedding | None] = {}
        attributes: dict[str, StoredAttributes | None] = {}
        for name, vector, own in steps[start : start + at_once]:
            if vector is not None:
                truth[name] = (VECTORS[vector], own if own is not None else _of(truth, name))
            elif own is not None and name in truth:
                truth[name] = (truth[name][0], own)
            else:
                truth.pop(name, None)
            if name in truth:
                data, now = truth[name]
                rows[name] = Embedding(name, "m", data.tobytes(), DIMENSION, AFTER)
                attributes[name] = StoredAttributes(name, encode_attributes(now), AFTER)
            else:
                rows[name] = Embedding(name, "m", None, 0, AFTER, AFTER)
                attributes[name] = StoredAttributes(name, "", AFTER)
        buffer.apply(rows)
        buffer.attributes.apply(attributes, rows)


def _of(truth: Truth, name: str) -> dict[str, Any]:
    return truth[name][1] if name in truth else {}


def nearest(truth: Truth, query: Floats, condition: Any, k: int, without: Sequence[str]) -> Hits:
    """Exact search over the products as they are, by a comprehension."""
    names = [
        name for name, (_, own) in truth.items() if expected(condition, own) and name not in without
    ]
    if not names:
        return Hits([], [])
    rows = prepare(np.stack([truth[name][0] for name in names]), "cosine")
    found = row_scores(prepare_one(query, "cosine"), rows).tolist()
    pairs = sorted((-score, name) for name, score in zip(names, found, strict=True))
    return Hits([name for _, name in pairs[:k]], [-score for score, _ in pairs[:k]])


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    later=STEPS,
    condition=FILTERS,
    at_once=st.integers(1, 7),
    k=st.sampled_from([1, 3, 40]),
    queries=st.lists(st.integers(0, len(VECTORS) - 1), min_size=1, max_size=3),
    exclude=st.lists(st.sampled_from([*IDS, *NEW]), max_size=4),
    graph=st.booleans(),
)
def test_a_filtered_search_is_a_comprehension_over_the_products_as_they_are(
    steps: list[Step],
    later: list[Step],
    condition: Any,
    at_once: int,
    k: int,
    queries: list[int],
    exclude: list[str],
    graph: bool,  # noqa: FBT001
) -> None:
    """Changed attributes, changed vectors, deletions, additions; and later ones change nothing."""
    buffer, truth = DeltaBuffer(index("hnsw_flat" if graph else None)), built()
    applied(buffer, truth, steps, at_once)
    snapshot = Snapshot(buffer.segment, buffer.snapshot())
    truth_then = dict(truth)
    applied(buffer, truth, later, at_once)
    matching = snapshot.matching(parse_filter(condition))
    assert matching.count == sum(expected(condition, own) for _, own in truth_then.values())
    refs = [ref for ref in map(snapshot.find, exclude) if ref is not None]
    vectors = [VECTORS[query] for query in queries]
    hits, _ = snapshot.search_matching(vectors, k, matching, exclude=refs, exact=k < 40)
    for vector, found in zip(vectors, hits, strict=True):
        assert found == nearest(truth_then, vector, condition, k, exclude)
    for name, (_, own) in truth_then.items():
        assert snapshot.attributes_of(name) == own


def test_the_recall_is_that_of_the_plan(tmp_path: Path) -> None:
    """As measured for so many rows; 1 where each was scored; else that of a plain search."""
    random = np.random.default_rng(3)
    ids = [f"p{number:05d}" for number in range(6000)]
    rows = random.normal(size=(len(ids), DIMENSION)).astype(np.float32)
    manifest = make(
        tmp_path,
        "b-1",
        ids,
        rows=rows,
        family="hnsw_flat",
        attributes={name: {"n": number} for number, name in enumerate(ids)},
    )
    bands = (RecallBand(0.2, 0.91, 10), RecallBand(1.0, 0.92, 10))
    manifest = msgspec.structs.replace(
        manifest, filtered_recall=bands, recall=msgspec.structs.replace(manifest.recall, value=0.93)
    )
    version = MappedVersion.open(tmp_path / "out", manifest)
    query = rows[7]

    def told(version: MappedVersion, below: int, *, exact: bool = False) -> tuple[float, bool]:
        snapshot = Snapshot(Segment(version, 1))
        matching = snapshot.matching(parse_filter({"n": {"$lt": below}}))
        _, used = snapshot.search_matching([query], 5, matching, exact=exact)
        return used.recall, used.exact

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtered, "_SCAN_US", 1e3)  # so that few rows are no reason to scan them
        assert told(version, 1000) == (0.91, False)
        assert told(version, 5000) == (0.92, False)
        assert told(version, 6000) == (0.93, False)
        assert told(version, 5000, exact=True) == (1.0, True)
        assert told(version, 5) == (1.0, True)
        earlier = msgspec.structs.replace(manifest, filtered_recall=())
        assert told(MappedVersion.open(tmp_path / "out", earlier), 1000) == (0.93, False)


@pytest.mark.parametrize("exact", [False, True])
def test_a_filter_that_all_products_match_is_no_filter(exact: bool) -> None:  # noqa: FBT001
    """The results, the scores and the provenance of a plain search, in every family."""
    families: tuple[Family | None, ...] = (None, "hnsw_flat", "hnsw_sq8")
    for family in families:
        buffer, truth = DeltaBuffer(index(family)), built()
        applied(buffer, truth, [("a", 2, None), ("p03", 4, None), ("p04", None, None)], 1)
        snapshot = Snapshot(buffer.segment, buffer.snapshot())
        matching = snapshot.matching(parse_filter({}))
        assert matching.count == len(truth)
        for query in VECTORS:
            plain = snapshot.search([query], 5, exact=exact)
            found, provenance = snapshot.search_matching([query], 5, matching, exact=exact)
            assert found == plain
            assert provenance.fresh == snapshot.provenance.fresh
