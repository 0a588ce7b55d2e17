"""Structs and numbers: what goes into DynamoDB comes out the same, or does not go in."""

import math
import struct
from typing import Any, Literal

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import example, given

from core.dynamo.items import Codec, attribute_of, float32_bytes, int_of, number_text
from core.dynamo.wire import AttributeValue, item_of
from core.errors import Corrupt, NumberOutOfRange
from core.models import Build, BuildParameters, Embedding, Model


class Inner(msgspec.Struct, frozen=True):
    """Something nested."""

    a: int = 0
    b: str | None = None


class Everything(msgspec.Struct, frozen=True):
    """One field of every kind that a codec knows."""

    text: str
    whole: int
    real: float
    yes: bool
    data: bytes
    one: Literal["a", "b"]
    texts: list[str]
    more: tuple[str, ...]
    inner: Inner
    anything: dict[str, Any]
    perhaps: str | None
    later: int | None = None
    given: int = 7


CODEC = Codec(Everything)

reals = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda x: x == 0 or 1e-130 <= abs(x) < 1e126
)
wholes = st.integers(-(10**38) + 1, 10**38 - 1) | st.builds(
    lambda digits, zeros: digits * 10**zeros,
    st.integers(-(10**38) + 1, 10**38 - 1),
    st.integers(0, 88),
)
texts = st.text(st.characters(codec="utf-8"))
jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | reals,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)


@given(wholes)
@example(10**125)
@example(-(10**38) + 1)
def test_whole_numbers_are_exact(number: int) -> None:
    """Every int within DynamoDB's range comes back as itself."""
    assert int_of(number_text(number)) == number


@pytest.mark.parametrize(
    "number",
    [10**126, -(10**126), 10**38 + 1, -(10**100_000), int("1" * 39)],
    ids=["large", "small", "39 digits", "100,000 digits", "39 ones"],
)
def test_numbers_out_of_range_are_refused(number: int) -> None:
    """Too many digits or too large: refused before it is sent."""
    with pytest.raises(NumberOutOfRange):
        number_text(number)


@pytest.mark.parametrize(
    ("text", "number"), [("1E+2", 100), ("100.00", 100), ("-0", 0), ("1e125", 10**125), ("+7", 7)]
)
def test_a_whole_number_in_another_spelling(text: str, number: int) -> None:
    """DynamoDB and its emulators write whole numbers in several ways."""
    assert int_of(text) == number


@pytest.mark.parametrize("text", ["", "x", "1.5", "NaN", "Infinity", "1e9999", "1e-5", "9" * 5000])
def test_what_is_no_whole_number(text: str) -> None:
    """Refused, and in no long time."""
    with pytest.raises(Corrupt):
        int_of(text)


@given(st.recursive(st.booleans() | wholes | texts | st.binary(), st.lists, max_leaves=10))
def test_values_off_the_wire_are_sent_as_they_came(value: Any) -> None:
    """A value has the same form in a request whether it is plain or came in a reply."""
    arrived = msgspec.convert(attribute_of(value), AttributeValue)
    assert attribute_of(arrived) == attribute_of(value)


@pytest.mark.parametrize("value", [object(), 1.5, None, {}])
def test_other_types_are_a_mistake(value: Any) -> None:
    """A value of a type that is not stored as such is a mistake of ours."""
    with pytest.raises(TypeError):
        attribute_of(value)


@given(
    st.builds(
        Everything,
        text=texts,
        whole=wholes,
        real=reals,
        yes=st.booleans(),
        data=st.binary(),
        one=st.sampled_from(["a", "b"]),
        texts=st.lists(texts),
        more=st.lists(texts).map(tuple),
        inner=st.builds(Inner, st.integers(-(2**63), 2**63 - 1), st.none() | texts),
        anything=st.dictionaries(texts, jsons),
        perhaps=st.none() | texts,
        later=st.none() | wholes,
        given=wholes,
    )
)
def test_structs_come_back(thing: Everything) -> None:
    """Every field of every kind; None is no attribute."""
    item = CODEC.encode(thing)
    assert ("perhaps" in item) == (thing.perhaps is not None)
    assert item["text"] == {"S": thing.text}
    assert CODEC.decode(item_of(item)) == thing


THING = Everything("t", 1, 1.5, True, b"x", "a", ["x"], ("y",), Inner(), {"k": 1}, None)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("text", None),
        ("text", {"N": "1"}),
        ("whole", {"S": "1"}),
        ("whole", {"N": "1.5"}),
        ("real", {"S": "x"}),
        ("yes", {"S": "true"}),
        ("data", {"S": "x"}),
        ("one", {"S": "c"}),
        ("texts", {"L": [{"N": "1"}]}),
        ("texts", {"S": "x"}),
        ("inner", {"S": "{"}),
        ("inner", {"S": '{"a": "x"}'}),
        ("whole", {"NULL": True}),
    ],
)
def test_a_row_that_is_damaged_names_the_attribute(attribute: str, value: Any) -> None:
    """Missing, of another type, unreadable: the error names the attribute, not its content."""
    item = CODEC.encode(THING)
    if value is None:
        del item[attribute]
    else:
        item[attribute] = value
    with pytest.raises(Corrupt, match=rf"\b{attribute}\b"):
        CODEC.decode(item_of(item))


def test_rows_may_hold_more_and_less() -> None:
    """Attributes that no field has are passed over; fields with a default may be missing."""
    item = CODEC.encode(THING) | {"unknown": {"S": "x"}, "perhaps": {"NULL": True}}
    del item["given"]
    assert CODEC.decode(item_of(item)) == THING


@pytest.mark.parametrize(
    "thing",
    [
        Embedding("p/é", "m", b"\x00" * 8, 2, "2026-01-01T00:00:00.000000Z"),
        Embedding("p", "m", None, 0, "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z"),
        Model("m", 384, "l2", 8, "2026-01-01T00:00:00.000000Z", pinned=True),
        Build(
            "b",
            "m",
            "published",
            "2026-01-01T00:00:00.000000Z",
            BuildParameters(target_recall=0.9),
            manifest={"files": [{"bytes": 1}], "recall": 0.95},
        ),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_domain_structs_come_back(thing: Any) -> None:
    """What K9 keeps, as it keeps it."""
    codec = Codec(type(thing))
    assert codec.decode(item_of(codec.encode(thing))) == thing


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_an_older_list_of_numbers_is_a_vector(numbers: list[float]) -> None:
    """A list of numbers gives the same float32 bytes as Binary would hold."""
    stored = AttributeValue(L=[AttributeValue(N=repr(number)) for number in numbers])
    packed = struct.pack(f"<{len(numbers)}f", *numbers)
    assert float32_bytes(stored) == packed
    assert float32_bytes(AttributeValue(B=packed)) == packed


def test_an_older_vector_out_of_range_is_infinite() -> None:
    """A number that float32 cannot hold is read, for a build to quarantine its row."""
    stored = AttributeValue(L=[AttributeValue(N=text) for text in ("0.1", "-2", "1E+39")])
    vector = np.frombuffer(float32_bytes(stored), "<f4").tolist()
    assert vector == [np.float32(0.1), -2.0, math.inf]


@pytest.mark.parametrize(
    "value",
    [
        AttributeValue(S="x"),
        AttributeValue(L=[AttributeValue(S="1")]),
        AttributeValue(L=[AttributeValue(N="1"), AttributeValue(N="x")]),
    ],
)
def test_what_is_no_vector(value: AttributeValue) -> None:
    """Neither binary nor a list of numbers: corrupt."""
    with pytest.raises(Corrupt):
        float32_bytes(value)
