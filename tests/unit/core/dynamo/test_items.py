"""Structs and numbers: what goes into DynamoDB comes out the same, or does not go in."""

import math
import struct
from decimal import Decimal
from typing import Annotated, Any, Literal

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import example, given

from core.dynamo.expressions import Update, expressions
from core.dynamo.items import (
    Codec,
    attribute_of,
    decimal_of,
    float32_bytes,
    int_of,
    number_text,
    plain_of,
)
from core.dynamo.wire import AttributeValue, item_of
from core.errors import Corrupt, NumberOutOfRange
from core.models import Build, BuildParameters, Embedding, Model, Progress

LARGEST = Decimal("9." + "9" * 37 + "E+125")


class Inner(msgspec.Struct, frozen=True):
    """Something nested."""

    a: int = 0
    b: str | None = None


class Everything(msgspec.Struct, frozen=True):
    """One field of every kind that a codec knows."""

    text: str
    whole: int
    real: float
    exact: Decimal
    yes: bool
    data: bytes
    one: Literal["a", "b"]
    texts: list[str]
    more: tuple[str, ...]
    inner: Inner
    anything: dict[str, Any]
    bounded: Annotated[int, msgspec.Meta(ge=0)]
    perhaps: str | None
    later: int | None = None
    given: int = 7


CODEC = Codec(Everything, rename={"text": "renamed"})

reals = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda x: x == 0 or 1e-130 <= abs(x) < 1e126
)
wholes = st.integers(-(10**38) + 1, 10**38 - 1) | st.builds(
    lambda digits, zeros: digits * 10**zeros,
    st.integers(-(10**38) + 1, 10**38 - 1),
    st.integers(0, 88),
)
decimals = st.builds(
    lambda sign, digits, adjusted: Decimal(
        (sign, tuple(map(int, str(digits))), adjusted - len(str(digits)) + 1)
    ),
    st.integers(0, 1),
    st.integers(1, 10**38 - 1),
    st.integers(-130, 125),
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


@given(reals)
@example(1e-130)
@example(-0.0)
@example(9.99e125)
@example(np.float64(0.1))
def test_real_numbers_are_exact(number: float) -> None:
    """Every float within DynamoDB's range comes back to the bit, but for the sign of 0."""
    assert float(number_text(number)) == number


@given(decimals)
@example(LARGEST)
@example(Decimal("1E-130"))
@example(Decimal("1.50"))
def test_decimals_are_exact(number: Decimal) -> None:
    """Every Decimal of up to 38 digits within range comes back equal."""
    assert decimal_of(number_text(number)) == number


@pytest.mark.parametrize(
    "number",
    [
        math.nan,
        math.inf,
        -math.inf,
        1e126,
        1e300,
        9.9e-131,
        5e-324,
        10**126,
        10**38 + 1,
        -(10**100_000),
        Decimal("1E+126"),
        Decimal("1E-131"),
        Decimal("NaN"),
        Decimal("-Infinity"),
        Decimal("1." + "1" * 38),
    ],
    ids=lambda number: type(number).__name__,
)
def test_numbers_out_of_range_are_refused(number: float | Decimal) -> None:
    """Not finite, too many digits, too large or too small: refused before it is sent."""
    with pytest.raises(NumberOutOfRange):
        number_text(number)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1E+2", 100), ("100.00", 100), ("-0", 0), ("1e125", 10**125), ("+7", 7)],
)
def test_a_whole_number_in_another_spelling(text: str, number: int) -> None:
    """DynamoDB and its emulators write whole numbers in several ways."""
    assert int_of(text) == number


@pytest.mark.parametrize("text", ["", "x", "1.5", "NaN", "Infinity", "1e9999", "1e-5", "9" * 5000])
def test_what_is_no_whole_number(text: str) -> None:
    """Refused, and in no long time."""
    with pytest.raises(Corrupt):
        int_of(text)


@given(
    st.recursive(
        st.none() | st.booleans() | wholes | texts | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
        max_leaves=10,
    )
)
def test_plain_values_come_back(value: Any) -> None:
    """`plain_of` undoes `attribute_of`, whatever is nested in it."""
    arrived = msgspec.convert(attribute_of(value), AttributeValue)
    assert plain_of(arrived) == value
    assert attribute_of(arrived) == attribute_of(value)


def test_sets_are_read() -> None:
    """Sets, which K9 does not write, are read as sets."""
    assert plain_of(AttributeValue(SS=["a", "b"])) == {"a", "b"}
    assert plain_of(AttributeValue(NS=["1", "2.5"])) == {1, Decimal("2.5")}
    assert plain_of(AttributeValue(BS=[b"x"])) == {b"x"}


def test_what_dynamodb_cannot_hold() -> None:
    """A value of a type it does not know is a mistake of ours; one that arrives is corrupt."""
    with pytest.raises(TypeError, match="object"):
        attribute_of(object())
    with pytest.raises(Corrupt):
        plain_of(AttributeValue())


@given(
    st.builds(
        Everything,
        text=texts,
        whole=wholes,
        real=reals,
        exact=decimals,
        yes=st.booleans(),
        data=st.binary(),
        one=st.sampled_from(["a", "b"]),
        texts=st.lists(texts),
        more=st.lists(texts).map(tuple),
        inner=st.builds(Inner, st.integers(-(2**63), 2**63 - 1), st.none() | texts),
        anything=st.dictionaries(texts, jsons),
        bounded=st.integers(0, 10),
        perhaps=st.none() | texts,
        later=st.none() | wholes,
        given=wholes,
    )
)
def test_structs_come_back(thing: Everything) -> None:
    """Every field of every kind; None is no attribute."""
    item = CODEC.encode(thing)
    assert ("perhaps" in item) == (thing.perhaps is not None)
    assert item["renamed"] == {"S": thing.text}
    assert CODEC.decode(item_of(item)) == thing


THING = Everything(
    "t", 1, 1.5, Decimal(1), True, b"x", "a", ["x"], ("y",), Inner(), {"k": 1}, 1, None
)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("renamed", None),
        ("renamed", {"N": "1"}),
        ("whole", {"S": "1"}),
        ("whole", {"N": "1.5"}),
        ("real", {"N": "x"}),
        ("exact", {"N": "nan"}),
        ("yes", {"S": "true"}),
        ("data", {"S": "x"}),
        ("one", {"S": "c"}),
        ("texts", {"L": [{"N": "1"}]}),
        ("texts", {"S": "x"}),
        ("inner", {"S": "{"}),
        ("inner", {"S": '{"a": "x"}'}),
        ("bounded", {"NULL": True}),
    ],
)
def test_a_row_that_is_damaged_names_the_attribute(attribute: str, value: Any) -> None:
    """Missing, of another type, unreadable: the error names the attribute, not its content."""
    item = CODEC.encode(THING)
    if value is None:
        del item[attribute]
    else:
        item[attribute] = value
    with pytest.raises(Corrupt, match=f"attribute {attribute} of a row"):
        CODEC.decode(item_of(item))


def test_rows_may_hold_more_and_less() -> None:
    """Attributes that no field has are passed over; fields with a default may be missing."""
    item = CODEC.encode(THING) | {"unknown": {"S": "x"}, "perhaps": {"NULL": True}}
    del item["given"]
    assert CODEC.decode(item_of(item)) == THING
    assert CODEC.attributes[:2] == ("renamed", "whole")


def test_changes_are_written_as_a_whole_row_would_be() -> None:
    """A Struct in a field is JSON text in an update as well; None removes."""
    codec = Codec(Build)
    changes = codec.changes(status="running", progress=Progress("pull", 1, 2), error=None)
    parameters = expressions(update=Update(set=changes))
    assert parameters["UpdateExpression"] == "SET #n0 = :v0, #n1 = :v1 REMOVE #n2"
    assert parameters["ExpressionAttributeValues"][":v0"] == {"S": "running"}
    text = parameters["ExpressionAttributeValues"][":v1"]["S"]
    assert msgspec.json.decode(text, type=Progress) == Progress("pull", 1, 2)
    with pytest.raises(TypeError, match="no field nothing"):
        codec.changes(nothing=1)


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


def test_an_older_row_is_an_embedding() -> None:
    """A whole row of the older layout is read by the codec of today."""
    codec = Codec(Embedding, rename={"vector": "embedding_vector", "dimension": "vector_dimension"})
    row = item_of(
        {
            "product_id": {"S": "p"},
            "model_version": {"S": "m"},
            "embedding_vector": {"L": [{"N": "0.1"}, {"N": "-2"}, {"N": "1E+39"}]},
            "vector_dimension": {"N": "3"},
            "updated_at": {"S": "2024-01-01T00:00:00Z"},
        }
    )
    vector = codec.decode(row).vector
    assert vector is not None
    assert np.frombuffer(vector, "<f4").tolist() == [np.float32(0.1), -2.0, math.inf]


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
