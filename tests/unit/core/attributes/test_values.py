"""Attributes: what is valid, what is named when it is not, merge patches, and the stored text."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.attributes.values import (
    Attributes,
    AttributesPatch,
    attribute_problems,
    checked_attributes,
    decode_attributes,
    encode_attributes,
    merge,
)
from core.errors import Corrupt, FieldError
from tests.merge_patch import merged

_names = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
_texts = st.text(st.characters(codec="utf-8"), max_size=12)
_values = (
    _texts
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(1 << 53), 1 << 53)
    | st.booleans()
    | st.lists(_texts, max_size=5)
)
_attributes = st.dictionaries(_names, _values, max_size=8)


@given(_attributes)
def test_valid_attributes_have_no_problem_and_come_back_as_they_were(given_: Attributes) -> None:
    """Whatever is valid is stored and read with its values and their types."""
    assert attribute_problems(given_) == []
    read = decode_attributes(encode_attributes(given_))
    assert read == given_
    assert [type(value) for value in read.values()] == [type(value) for value in given_.values()]


@given(_attributes, st.dictionaries(_names, _values | st.none(), max_size=8))
def test_a_merge_patch_does_what_the_rfc_says(before: Attributes, patch: AttributesPatch) -> None:
    """Names are replaced, removed if null, and all others stay."""
    assert attribute_problems(patch, removals=True) == []
    assert merge(before, patch) == merged(before, patch)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "not a finite number"),
        (math.inf, "not a finite number"),
        ((1 << 53) + 1, "no number that float64 holds exactly"),
        (10**400, "no number that float64 holds exactly"),
        ("x" * 257, "has 257 characters, the most is 256"),
        ("\ud800", "not valid Unicode"),
        (["a"] * 65, "has 65 strings, the most is 64"),
        (["a", 1], "[1] is not a string"),
        (["a", "x" * 257], "[1] has 257 characters"),
        ({"a": 1}, "not a string, number, boolean or list"),
        (None, "not a string, number, boolean or list"),
        (b"a", "not a string, number, boolean or list"),
    ],
)
def test_a_bad_value_is_named_with_its_place(value: Any, why: str) -> None:
    """The problem stands at the name of the attribute, and only there."""
    (problem,) = attribute_problems({"good": 1, "bad": value}, "embeddings[3].attributes")
    assert problem.field == "embeddings[3].attributes.bad"
    assert why in problem.message


@pytest.mark.parametrize("name", ["", "a b", "a.b", "x" * 65, "ü", "a\n", "\ud800", "$gt"])
def test_a_bad_name_is_told_at_the_object(name: str) -> None:
    """A name that is none is shown in the message, in text that any log can hold."""
    (problem,) = attribute_problems({name: 1})
    assert problem.field == "attributes"
    assert "is no name of an attribute" in problem.message
    problem.message.encode()


def test_the_limits_are_taken_and_one_more_is_not() -> None:
    """64 names, 256 characters and 64 strings are allowed, and so are 8 KiB in all."""
    assert attribute_problems({f"n{i}": i for i in range(64)}) == []
    assert len(attribute_problems({f"n{i}": i for i in range(65)})) == 1
    assert attribute_problems({"t": "ü" * 256, "l": ["ü"] * 64, "i": 1 << 60}) == []
    room = 8192 - len('{"l":[' + ",".join(['"' + "x" * 256 + '"'] * 31) + '],"m":""}')
    full = {"l": ["x" * 256] * 31, "m": "x" * room}
    assert attribute_problems(full) == []
    (problem,) = attribute_problems({**full, "m": "x" * (room + 1)})
    assert problem == FieldError("attributes", "has 8193 bytes as JSON, the most is 8192")


@pytest.mark.parametrize("number", [1 << 64, 10**22, -(1 << 63) - (1 << 11), 1 << 1000])
def test_whole_numbers_of_any_size_are_written_as_msgpack_too(number: int) -> None:
    """As the float that is the same number: msgpack's integers have 64 bits."""
    assert attribute_problems({"n": number}) == []
    for read in (decode_attributes(encode_attributes({"n": number})), merge({}, {"n": number})):
        assert read == {"n": number}
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(read)) == {"n": number}
    for kept in ((1 << 64) - (1 << 11), -(1 << 63)):
        assert isinstance(merge({}, {"n": kept})["n"], int)


def test_a_number_that_no_float64_holds_is_read_as_it_is() -> None:
    """Of somebody else's making: it is named where attributes are checked."""
    stored = '{"n":1' + "0" * 400 + "}"
    assert decode_attributes(stored) == {"n": 10**400}
    with pytest.raises(Corrupt, match="no number that float64 holds exactly"):
        checked_attributes(stored.encode())


def test_names_that_a_patch_removes_do_not_count() -> None:
    """All that an embedding may have can be exchanged at once."""
    gone = dict.fromkeys([f"a{number}" for number in range(64)])
    new: AttributesPatch = {f"b{number}": "x" * 90 for number in range(64)}
    assert attribute_problems(gone | new, removals=True) == []
    (error,) = attribute_problems({**gone, "a64": None}, removals=True)
    assert error.message == "removes 65 names, the most is 64"
    (error,) = attribute_problems(gone | new | {"b64": 1}, removals=True)
    assert error.message == "has 65 names, the most is 64"


def test_every_bad_attribute_is_named() -> None:
    """All problems are told at once."""
    fields = [each.field for each in attribute_problems({"a": None, "b": {}, "c": 1})]
    assert fields == ["attributes.a", "attributes.b"]


@pytest.mark.parametrize("stored", ["", "[]", '{"a": {}}', '{"a": [1]}', "{", "[" * 100_000])
def test_a_stored_text_that_is_none_is_corrupt(stored: str) -> None:
    """It raises an error of its own, whatever it is."""
    with pytest.raises(Corrupt):
        decode_attributes(stored)
