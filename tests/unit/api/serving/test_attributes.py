"""Attributes changed since a build: at each moment those of the products as they are."""

import asyncio
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

from api.serving import attributes as serving_attributes
from api.serving.attributes import AttributeBuffer, AttributeSnapshot
from api.serving.segment import Segment
from core.attributes.filters import parse_filter
from core.attributes.values import encode_attributes
from core.index.version import MappedVersion
from core.models import StoredAttributes
from tests.unit.api.serving.versions import make
from tests.unit.core.attributes.test_columns import ATTRIBUTES, FILTERS, expected

IDS = tuple(f"p{number:02d}" for number in range(8))
NEW = ("a", "p05x", "ü")
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"a": 1, "b": "red"},
    {"a": "1", "c": ["red", "blue"]},
    {"b": True},
)
BUILT = {name: KINDS[number % 4] for number, name in enumerate(IDS)}
WATERMARK = "2026-02-01T00:00:00.000000Z"
Truth = dict[str, dict[str, Any]]
Step = tuple[str, dict[str, Any] | None]
STEPS = st.lists(
    st.tuples(st.sampled_from([*IDS, *NEW]), st.one_of(st.none(), ATTRIBUTES)), max_size=30
)


@cache
def index(name: str = "b-1", *, columns: bool = True) -> Segment:
    """A segment of the products, with their attributes or without any."""
    directory = Path(mkdtemp())
    built = BUILT if columns else {}
    manifest = make(directory, name, IDS, watermark=WATERMARK, attributes=built)
    if not columns:
        manifest = msgspec.structs.replace(manifest, rows_with_attributes=None)
    return Segment(MappedVersion.open(directory / "out", manifest), 1)


def moment(number: int) -> str:
    """A time after the watermark."""
    return f"2026-03-01T00:00:00.{number:06d}Z"


def stored(product_id: str, attributes: dict[str, Any] | None, at: str) -> StoredAttributes:
    """The item of attributes, or the tombstone of one."""
    text = "" if attributes is None else encode_attributes(attributes)
    return StoredAttributes(product_id, text, at)


def applied(buffer: AttributeBuffer, steps: Sequence[Step], at_once: int) -> None:
    """Applies changes to the buffer."""
    for start in range(0, len(steps), at_once):
        part = steps[start : start + at_once]
        found = {name: stored(name, own, moment(start)) for name, own in part}
        buffer.apply(found, found)


async def compacted_while(buffer: AttributeBuffer, steps: Sequence[Step], at_once: int) -> None:
    """Applies changes to the buffer while it is compacted, where it has to be."""
    compacting = asyncio.create_task(buffer.compact())
    await asyncio.sleep(0)
    applied(buffer, steps, at_once)
    await compacting


def matching(snapshot: AttributeSnapshot, buffer: AttributeBuffer, condition: Any) -> set[str]:
    """The products that a filter finds, of those that have a slot."""
    mask = snapshot.select(parse_filter(condition))
    slots = {name: buffer.slot(name, snapshot.segment.row_of(name)) for name in (*IDS, *NEW)}
    return {name for name, slot in slots.items() if slot < len(mask) and mask[slot]}


def check(
    snapshot: AttributeSnapshot, buffer: AttributeBuffer, truth: Truth, condition: Any
) -> None:
    """What a snapshot has is the truth."""
    for name in (*IDS, *NEW):
        found = snapshot.of(name, snapshot.segment.row_of(name))
        assert repr(sorted(found.items())) == repr(sorted(truth.get(name, {}).items()))
    found_ids = matching(snapshot, buffer, condition)
    wanted = {name for name in (*IDS, *NEW) if expected(condition, truth.get(name, {}))}
    # A product without attributes that the segment never had needs no slot: its row would get one.
    assert found_ids <= wanted
    assert all(name in NEW and not truth.get(name) for name in wanted - found_ids)


@settings(max_examples=200, deadline=None)
@given(
    before=STEPS,
    after=STEPS,
    condition=FILTERS,
    at_once=st.integers(1, 7),
    columns=st.booleans(),
    compact=st.sampled_from([1, 5, 4096]),
)
def test_a_snapshot_has_the_attributes_of_its_moment(
    before: list[Step],
    after: list[Step],
    condition: Any,
    at_once: int,
    columns: bool,  # noqa: FBT001
    compact: int,
) -> None:
    """Whatever changed before it and is changed after it, in the segment and beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_attributes, "_COMPACT_ROWS", compact)
        buffer = AttributeBuffer(index(columns=columns))
        truth: Truth = dict(BUILT) if columns else {}
        applied(buffer, before, at_once)
        truth |= {name: own or {} for name, own in before}
        earlier, then = buffer.snapshot(), dict(truth)
        check(earlier, buffer, truth, condition)
        asyncio.run(compacted_while(buffer, after, at_once))
        truth |= {name: own or {} for name, own in after}
        check(buffer.snapshot(), buffer, truth, condition)
        check(earlier, buffer, then, condition)
        coming = AttributeBuffer(index("b-2", columns=not columns))
        coming.carry_over(buffer, buffer.product_ids)
        known = {name: own for name, own in truth.items() if name in buffer.product_ids}
        rest: Truth = {} if columns else dict(BUILT)
        check(coming.snapshot(), coming, rest | known, condition)


def test_what_the_segment_has_is_no_change() -> None:
    """Neither what a poll shows of it, nor what is read: a build after an import has most rows."""
    buffer = AttributeBuffer(index())
    page = [stored(name, dict(reversed(own.items())), moment(1)) for name, own in BUILT.items()]
    assert buffer.differing(page) == []
    buffer.apply({each.product_id: each for each in page}, {})
    assert buffer.product_ids == []
    assert buffer.snapshot().changed == 0
    gone = stored("new", None, moment(2))
    assert buffer.differing([gone]) == []
    other = stored("p00", {"a": 1.0}, moment(3))
    assert buffer.differing([other]) == ["p00"]
    buffer.apply({"p00": other}, {})
    assert buffer.differing([other]) == []
    assert buffer.differing([stored("p00", {"a": 1.0}, moment(4))]) == ["p00"]


def test_types_that_python_takes_for_equal_are_a_change() -> None:
    """1 is not true, and 1.0 is given back as such."""
    buffer = AttributeBuffer(index())
    for number, value in enumerate((True, 1.0)):
        found = {"p01": stored("p01", {"a": value, "b": "red"}, moment(number))}
        assert buffer.differing(list(found.values())) == ["p01"]
        buffer.apply(found, {})
        assert repr(buffer.snapshot().of("p01", 1)["a"]) == repr(value)


def test_only_a_reading_with_the_row_reflects_a_write() -> None:
    """A write of both is not reflected by its attributes alone; earlier snapshots stay the same."""
    buffer = AttributeBuffer(index())
    found = {"p00": stored("p00", {"a": 5}, moment(1))}
    buffer.apply(found, {})
    alone = buffer.snapshot()
    assert not alone.reflects("p00", moment(1))
    buffer.apply(found, found)
    assert buffer.snapshot().reflects("p00", moment(1))
    assert not alone.reflects("p00", moment(1))
    assert not buffer.snapshot().reflects("p00", moment(2))
    assert not buffer.snapshot().reflects("p01", moment(1))


def test_attributes_that_cannot_be_read_are_none() -> None:
    """They stop no other product."""
    buffer = AttributeBuffer(index())
    good = stored("p00", {"a": 5}, moment(1))
    buffer.apply({"p01": StoredAttributes("p01", "{", moment(1)), "p00": good}, {})
    assert buffer.snapshot().of("p01", 1) == {}
    assert buffer.snapshot().of("p00", 0) == {"a": 5}


def test_after_an_overflow_the_segment_answers() -> None:
    """Nothing is added any more, and what was known takes no memory."""
    buffer = AttributeBuffer(index())
    found = {"p01": stored("p01", {"a": "x" * 200}, moment(1))}
    buffer.apply(found, found)
    assert buffer.resident_bytes > 200
    buffer.overflow()
    buffer.apply(found, found)
    assert buffer.resident_bytes == 0
    assert buffer.differing(list(found.values())) == []
    assert buffer.snapshot().of("p01", 1) == BUILT["p01"]
    assert np.count_nonzero(buffer.snapshot().select(parse_filter({"a": 1}))) == 2


async def test_what_was_changed_again_is_dropped() -> None:
    """Once it is a third of all, so that memory and time stay those of the products."""
    buffer = AttributeBuffer(index())
    for number in range(1000):
        names = IDS[:5]
        found = {name: stored(name, {"a": number}, moment(number)) for name in names}
        buffer.apply(found, found)
    before = buffer.snapshot()
    size = buffer.resident_bytes
    await buffer.compact()
    after = buffer.snapshot()
    assert (before.changed, after.changed) == (5000, 5)
    assert buffer.resident_bytes < size / 100
    for snapshot in (before, after):
        assert snapshot.of("p03", 3) == {"a": 999}
        assert np.count_nonzero(snapshot.select(parse_filter({"a": 999}))) == 5
        assert snapshot.reflects("p03", moment(999))
    buffer.apply({"p03": stored("p03", {"a": 7}, moment(1001))}, {})
    assert buffer.snapshot().of("p03", 3) == {"a": 7}
    assert after.of("p03", 3) == {"a": 999}
