"""Any entry of older data: it becomes a row that can be stored, or it is bad, and says why."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.dynamo.items import number_text
from core.embedding_files.json_entries import Entry
from core.models import Report, User
from core.repositories.reports import REPORT_CODEC
from core.repositories.users import USER_CODEC
from core.settings import Settings
from core.usecases.reports import ReportService
from deploy.data.migration.legacy_rows import BadEntry, LegacyRow, RowParser

SETTINGS = Settings()
_NAMES = {
    "users": ("user_id", "name", "email", "avatar_url", "preferences", "deleting_at"),
    "reports": ("id", "user_id", "title", "author", "date", "reference", "favorites"),
    "embeddings": ("product_id", "model_version", "embedding_vector", "vector_dimension"),
}
_TIMES = ("created_at", "updated_at", "version", "deleted_at", "model_shard", "other")

_NUMBERS = st.one_of(
    st.integers(),
    st.integers(10**37, 10**40),
    st.integers(min_value=10**400, max_value=10**401),
    st.floats(),
    st.sampled_from([1e308, 5e-324, 253402300800, 1e11, -62135596801]),
)
_TEXTS = st.one_of(
    st.text(st.characters(), max_size=20),  # lone surrogates too
    st.sampled_from(
        [
            *("u1", "a.b~c", "x" * 600, "é" * 600, "", " ", "\x00", "9999-12-31T23:59:59-12:00"),
            *("2025-09-30T10:00:00Z", "2025-09-30t10:00:00z", "2025-02-30", "{}", '{"a": 1e400}'),
            *("[" * 3000, '{"a": ' * 200, '"\\ud800"', "a@b", "https://[", "https://é.example"),
        ]
    ),
)
_PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
_TYPED = st.one_of(
    st.fixed_dictionaries({"S": _TEXTS}),
    st.fixed_dictionaries({"N": st.one_of(_NUMBERS.map(str), _TEXTS)}),
    st.fixed_dictionaries({"B": st.one_of(st.sampled_from(["", "AACAPw==", "AAA="]), _TEXTS)}),
    st.fixed_dictionaries({"NS": st.lists(_NUMBERS.map(str), max_size=3)}),
    st.fixed_dictionaries({"L": st.lists(st.fixed_dictionaries({"N": _NUMBERS.map(str)}))}),
    st.dictionaries(st.sampled_from(["S", "N", "B", "M", "L", "NULL", "BOOL", "x"]), _PLAIN),
)


def rows_of(values: Any) -> Any:
    """Rows of a table, most of them with a good key."""

    def rows(table: str) -> Any:
        names = (*_NAMES[table], *_TIMES)
        some = st.dictionaries(st.sampled_from(names), values, max_size=6)
        return st.tuples(st.just(table), some)

    return st.sampled_from(sorted(_NAMES)).flatmap(rows)


def read(table: str, text: bytes) -> Any:
    """What becomes of an entry of this text."""
    reports = ReportService(None, SETTINGS)  # type: ignore[arg-type] # nothing is stored
    return RowParser(table, SETTINGS, reports).parse(Entry(1, 1, text))


def assert_storable(row: Any) -> None:
    """Checks that a row can be sent to DynamoDB as it is, or says why not."""
    assert isinstance(row, LegacyRow | BadEntry), row
    msgspec.json.encode(row.id)
    if isinstance(row, BadEntry):
        assert row.reason
        return
    record = row.record
    if isinstance(record, User):
        item = USER_CODEC.encode(record)
    elif isinstance(record, Report):
        item = REPORT_CODEC.encode(record)
    else:
        assert record.vector.dtype == np.float32
        return
    assert len(msgspec.json.encode(item)) < 400_000
    assert number_text(record.version)


@given(rows_of(_PLAIN))
@example(("users", {"user_id": "u", "version": 10**42}))
@example(("users", {"user_id": "u", "version": 10**38}))
@example(("users", {"user_id": "u", "version": 10**38 - 1}))
@example(("users", {"user_id": "u", "name": "\ud800"}))
@example(("users", {"user_id": "\ud800"}))
@example(("users", {"user_id": "u", "preferences": '{"a": "\ud800"}'}))
@example(("users", {"user_id": "u", "created_at": 10**400}))
@example(("embeddings", {"product_id": "p", "model_version": "m", "embedding_vector": [10**400]}))
def test_plain_json_never_ends_a_run(row: tuple[str, dict[str, Any]]) -> None:
    """Whatever the values: numbers of any length, lone surrogates, depth, other types."""
    table, members = row
    good = {"users": {"user_id": "u"}, "reports": {"id": "r", "user_id": "u", "title": "t"}}
    for text in (json.dumps(members), json.dumps(good.get(table, {}) | members)):
        assert_storable(read(table, text.encode()))


@given(rows_of(_TYPED))
@example(("users", {"user_id": {"S": "u"}, "version": {"N": "1" * 5000}}))
@example(("users", {"user_id": {"S": "u"}, "version": {"N": "1E+38"}}))
@example(("users", {"user_id": {"S": "u"}, "preferences": {"M": {"\ud800": {"S": "x"}}}}))
def test_dynamodbs_json_never_ends_a_run(row: tuple[str, dict[str, Any]]) -> None:
    """Of any types, and of none that there is."""
    table, members = row
    good = {"users": {"user_id": {"S": "u"}}, "reports": {"id": {"S": "r"}, "user_id": {"S": "u"}}}
    for text in (json.dumps(members), json.dumps(good.get(table, {}) | members)):
        assert_storable(read(table, text.encode()))


@given(table=st.sampled_from(sorted(_NAMES)), cut=st.integers(0, 60), put=st.binary(max_size=4))
def test_bytes_of_any_kind_never_end_a_run(table: str, cut: int, put: bytes) -> None:
    """Text that is cut, not UTF-8, or no JSON at all."""
    text = b'{"user_id": "u", "id": "r", "product_id": "p", "title": "t", "version": 2}'
    assert_storable(read(table, text[:cut] + put + text[cut:]))


@pytest.mark.parametrize("digits", [39, 42, 4000, 5000])
def test_a_version_of_too_many_digits_is_told(digits: int) -> None:
    """With how many there may be; 38 of them are stored to the last one."""
    text = b'{"user_id": "u", "version": ' + b"9" * digits + b"}"
    bad = read("users", text)
    assert isinstance(bad, BadEntry)
    assert "version" in bad.reason
    good = read("users", text.replace(b"9" * digits, b"9" * 38))
    assert good.record.version == int("9" * 38)
