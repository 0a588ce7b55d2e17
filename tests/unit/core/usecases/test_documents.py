"""JSON kept as text: merge patches that read no number, and checks that miss no bracket."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Unreadable
from core.usecases.documents import check_text, is_null, is_object, levels, merge_patch
from tests.merge_patch import merged

RFC_7396 = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]
"""The test cases of its appendix A."""

NUMBERS = (
    "1.0",
    "1e-300",
    "1E+300",
    "-0.0",
    "0",
    "-0",
    "1e99999",
    "9" * 5000,
    "0." + "0" * 400 + "1",
    "123456789012345678901234567890.10",
)

_numbers = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,60})(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,6})?", fullmatch=True),
)
_spaces = st.text(" \t\r\n", max_size=2)


def _object(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects as text, with keys of all kinds and space where JSON has it."""
    member = st.tuples(st.text(max_size=8).map(json.dumps), _spaces, children)
    members = st.lists(member, max_size=4, unique_by=lambda made: made[0])
    return members.map(
        lambda made: "{" + ",".join(f"{key}{space}:{space}{v}" for key, space, v in made) + "}"
    )


_values = st.recursive(
    _numbers
    | st.sampled_from(("null", "true", "false"))
    | st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)),
    lambda children: (
        _object(children)
        | st.lists(children, max_size=4).map(lambda parts: "[" + " , ".join(parts) + "]")
    ),
    max_leaves=12,
)
_objects = _object(_values)


class Number(str):
    """A number's own characters, told apart from a string's."""

    __slots__ = ()


def parsed(text: bytes) -> Any:
    """JSON with each number as its characters."""
    return json.loads(text, parse_int=Number, parse_float=Number)


@pytest.mark.parametrize(("target", "patch", "result"), RFC_7396)
def test_the_cases_of_the_rfc(target: str, patch: str, result: str) -> None:
    """Appendix A of RFC 7396, line by line."""
    assert merge_patch(target.encode(), patch.encode()).decode() == result


@given(_objects, _values)
def test_any_patch_of_any_object(target: str, patch: str) -> None:
    """What comes out is what the RFC's pseudo code makes, each number with its own characters."""
    made = merge_patch(target.encode(), patch.encode())
    assert parsed(made) == merged(parsed(target.encode()), parsed(patch.encode()))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_stays_as_it_is_written(number: str) -> None:
    """In what a patch leaves alone, in what it brings, and in what it nests: no digit changes."""
    target = f'{{"kept": [{number}], "inner": {{"deep": {number}}}}}'
    patch = f'{{"new": {number}, "inner": {{"more": {number}}}}}'
    made = merge_patch(target.encode(), patch.encode()).decode()
    assert made == (
        f'{{"kept":[{number}],"inner":{{"deep":{number},"more":{number}}},"new":{number}}}'
    )


@given(_objects)
def test_an_empty_patch_changes_nothing(target: str) -> None:
    """`{}` leaves every value as it was; null members that are there already stay too."""
    assert parsed(merge_patch(target.encode(), b"{}")) == parsed(target.encode())


def test_keys_are_names_and_no_paths() -> None:
    """Dots, slashes, quotes and the empty key are keys like any other; the last of two counts."""
    target = rb'{"a.b": 1, "": 2, "\"q\"": 3, "a": {"b": 4}}'
    patch = rb'{"a.b": null, "": {"": 5}, "\"q\"": null, "/a/b": 6, "x": 7, "x": 8}'
    assert parsed(merge_patch(target, patch)) == {
        "": {"": "5"},
        "a": {"b": "4"},
        "/a/b": "6",
        "x": "8",
    }


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


@given(_values)
def test_levels_are_those_of_brackets_outside_strings(text: str) -> None:
    """Brackets in strings and keys do not count, escaped quotes end no string."""
    assert levels(text.encode()) == _depth(parsed(text.encode()))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("{}", 1),
        ('{"a": []}', 2),
        ("1", 0),
        (r'{"[": "{[\"["}', 1),
        (r'{"\\": "\\", "[": 1}', 1),
        ("[" * 3000 + "]" * 3000, 3000),
    ],
)
def test_levels_of(text: str, count: int) -> None:
    """Of texts that could be miscounted."""
    assert levels(text.encode()) == count


def test_what_a_value_is() -> None:
    """By its first character, or all of them, with space around it or without."""
    assert is_object(b' \r\n\t{"a": 1} ')
    assert not any(map(is_object, (b"[]", b'"{"', b"null", b"1")))
    assert is_null(b"\n null ")
    assert not any(map(is_null, (b'"null"', b"{}", b"0", b"[null]")))


def test_text_that_is_no_utf8_is_unreadable() -> None:
    """Msgspec passes over the inside of strings that it does not decode."""
    check_text('{"é": "🐍"}'.encode())
    for text in (b'{"a": "\xff"}', b'{"\xff": 1}', b'{"a": "\xed\xa0\x80"}'):
        with pytest.raises(Unreadable):
            check_text(text)


@given(st.integers(1, 97), st.integers(0, 97), st.sampled_from(["1.0", '"]}"', "[{}, []]", "{}"]))
def test_deep_documents_are_merged_at_every_level(depth: int, other: int, leaf: str) -> None:
    """Whatever brackets and quotes their strings hold; what is not named stays as it was."""
    target = '{"a]": ' * depth + leaf + ', "b\\"{": 2.50}' * depth
    patch = '{"a]": ' * other + '{"c": null, "d": 1}' + "}" * other
    result = merge_patch(target.encode(), patch.encode())
    assert json.loads(result) == merged(json.loads(target), json.loads(patch))
    assert b"2.50" in result
