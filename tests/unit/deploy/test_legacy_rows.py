import json
from base64 import b64encode
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from core.embedding_files.json_entries import Entry
from core.models import Report, User
from core.repositories.reports import ReportRepository
from core.settings import Settings
from core.usecases.reports import ReportService
from deploy.data.migration.legacy_rows import BadEntry, Deletion, LegacyRow, RowParser
from deploy.data.migration.store import LegacyEmbedding
from tests.golden.formats import FORMATS

_AT = "2025-09-30T10:00:00Z"
_KEPT_AT = "2025-09-30T10:00:00.000000Z"
_USER = {"user_id": "u1", "name": "Ada", "created_at": _AT, "updated_at": _AT}
_REPORT = {"id": "report_1", "user_id": "u1", "title": "T", "created_at": _AT}
_EMBEDDING = {"product_id": "p/1", "model_version": "m", "embedding_vector": [1, 0.5]}


def _read(table: str, *rows: Any) -> list[LegacyRow | BadEntry | Deletion]:
    settings = Settings()
    reports = ReportService(cast("ReportRepository", None), settings)  # reading asks no table
    parser = RowParser(table, settings, reports)
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return [parser.parse(Entry(n, n, text)) for n, text in enumerate(texts, 1)]


def _good(table: str, row: Any) -> LegacyRow:
    (found,) = _read(table, row)
    assert isinstance(found, LegacyRow), found
    return found


def _reason(table: str, row: Any) -> str:
    (found,) = _read(table, row)
    assert isinstance(found, BadEntry), found
    return found.reason


@pytest.mark.parametrize("name", ["user", "report"])
def test_every_field_of_a_row_that_k9_wrote_arrives(name: str) -> None:
    """So that a new field of a record is read here too, and not dropped without a word."""
    form = next(each for each in FORMATS if each.name == name)
    fields = msgspec.structs.asdict(form.sample)
    defaults = {each.name: each.default for each in msgspec.structs.fields(form.sample)}
    assert [each for each, value in fields.items() if value == defaults[each]] == []
    bare = (
        form.sample if name == "report" else msgspec.structs.replace(form.sample, deleting_at=None)
    )
    assert _good(f"{name}s", form.encode(bare)).record == bare


PREFERENCES = (
    '{"": [], "a.b": 1e-300, "c": 1.0, "d": 123456789012345678901234567890, "é": {"x": ""}}'
)


def test_preferences_come_over_as_they_stand() -> None:
    """No number, key or space of them changes."""
    text = json.dumps(_USER)[:-1] + f', "preferences": {PREFERENCES}}}'
    user = _good("users", text.encode()).record
    assert isinstance(user, User)
    assert user.preferences == PREFERENCES
    assert (user.created_at, user.updated_at, user.version) == (_KEPT_AT, _KEPT_AT, 1)


def test_dynamodb_json_is_read_with_exact_numbers() -> None:
    """As `aws dynamodb scan` prints it: maps, lists, sets, nulls and 38 digits."""
    digits = "12345678901234567890123456789012345678"
    row = {
        "user_id": {"S": "u1"},
        "name": {"S": "Ada"},
        "email": {"NULL": True},
        "avatar_url": {"S": ""},
        "photo": {"B": "AAAA"},
        "preferences": {
            "M": {
                "n": {"N": digits},
                "f": {"N": "0.10"},
                "l": {"L": [{"BOOL": False}, {"NULL": True}, {"S": ""}]},
                "s": {"SS": ["a"]},
                "t": {"NS": ["1E+2"]},
                "": {"M": {}},
            }
        },
        "updated_at": {"N": "1759226400"},
    }
    found = _good("users", row)
    user = found.record
    assert isinstance(user, User)
    assert user.preferences == (
        f'{{"n":{digits},"f":0.10,"l":[false,null,""],"s":["a"],"t":[1E+2],"":{{}}}}'
    )
    assert (user.email, user.avatar_url, user.created_at) == (None, None, _KEPT_AT)
    assert found.changed_at == _KEPT_AT
    assert found.left_out == ("photo",)


def test_a_row_of_an_export_to_s3_is_read() -> None:
    """Which wraps each in `Item`."""
    found = _good("reports", {"Item": {n: {"S": value} for n, value in _REPORT.items()}})
    assert isinstance(found.record, Report)
    assert found.record.title == "T"


def test_preferences_that_are_text_are_unwrapped() -> None:
    """K9's own rows, as a scan prints them."""
    user = _good("users", {"user_id": {"S": "u"}, "preferences": {"S": ' {"a": 1.0}'}}).record
    assert isinstance(user, User)
    assert user.preferences == '{"a": 1.0}'


def test_a_report_keeps_its_id_and_drops_repeats() -> None:
    """Favorites stay in order; a date at midnight is a date; what is blank is unset."""
    row = {**_REPORT, "favorites": ["b", "a", "b"], "date": "2025-09-30T00:00:00Z", "author": " "}
    found = _good("reports", {**row, "tags": ["x"]})
    report = found.record
    assert isinstance(report, Report)
    assert (report.id, report.favorites) == ("report_1", ("b", "a"))
    assert (report.date, report.author) == ("2025-09-30", None)
    assert (report.created_at, report.updated_at) == (_KEPT_AT, _KEPT_AT)
    assert found.left_out == ("tags",)


def test_a_row_without_times_has_none_to_compare() -> None:
    """It counts as made now."""
    found = _good("reports", {"id": "a", "user_id": "u", "title": "t"})
    assert found.changed_at is None
    assert isinstance(found.record, Report)
    assert found.record.created_at.endswith("Z")


@pytest.mark.parametrize(
    "vector",
    [
        [1, 0.5, -1e-40],
        {"L": [{"N": "1"}, {"N": "0.5"}, {"N": "-1E-40"}]},
        {"B": b64encode(np.array([1, 0.5, -1e-40], "<f4").tobytes()).decode()},
    ],
)
def test_vectors_of_every_form_are_float32(vector: Any) -> None:
    """Lists of numbers, DynamoDB's, and Binary."""
    row: dict[str, Any] = dict(_EMBEDDING)
    if isinstance(vector, dict):
        row = {name: {"S": value} for name, value in row.items() if isinstance(value, str)}
        row["vector_dimension"] = {"N": "3"}
    found = _good("embeddings", {**row, "embedding_vector": vector}).record
    assert isinstance(found, LegacyEmbedding)
    assert found.vector.dtype == np.float32
    assert found.vector.tobytes() == np.array([1, 0.5, -1e-40], "<f4").tobytes()


@pytest.mark.parametrize(
    ("table", "row", "words"),
    [
        ("users", b'{"user_id": "u",}', "JSON is malformed"),
        ("users", b'{"user_id": "\xff"}', "not UTF-8"),
        ("users", b"[" * 100_000, ""),
        (
            "users",
            b'{"user_id": "u", "preferences": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
            "",
        ),
        ("users", b'{"user_id": {"S": "u"}, "preferences": {"M": {"a": {"B": "AA=="}}}}', "binary"),
        ("users", b'{"user_id": {"S": "u"}, "name": {"X": "y"}}', "of none of DynamoDB's types"),
        ("users", "text", "Expected `object`"),
        ("users", {}, "user_id is missing"),
        ("users", {**_USER, "user_id": " "}, "user_id takes"),
        ("users", {**_USER, "email": "x"}, "email is not an email address"),
        ("users", {**_USER, "name": 5}, "name: Expected `str | null`"),
        ("users", {**_USER, "preferences": [1]}, "preferences must be a JSON object"),
        ("users", {**_USER, "preferences": "no"}, "preferences must be a JSON object"),
        ("users", {**_USER, "preferences": {"a": "x" * 70_000}}, "the most is 65536"),
        ("users", {**_USER, "created_at": "soon"}, "created_at is not a time"),
        ("users", {**_USER, "deleting_at": _AT}, "is deleted"),
        ("reports", {**_REPORT, "id": "a/b"}, "id takes 1 to 128"),
        ("reports", {**_REPORT, "id": ".."}, "id takes 1 to 128"),
        ("reports", {**_REPORT, "title": ""}, "title is required"),
        ("reports", {**_REPORT, "user_id": None}, "user_id is missing"),
        ("reports", {**_REPORT, "date": "2025-09-30T10:00:00Z"}, "full-date"),
        ("reports", {**_REPORT, "favorites": [1]}, "favorites: Expected `str`"),
        ("embeddings", {**_EMBEDDING, "embedding_vector": None}, "Expected `array`"),
        ("embeddings", {**_EMBEDDING, "embedding_vector": ["1"]}, "Expected `float`"),
        ("embeddings", {**_EMBEDDING, "vector_dimension": 3}, "2 numbers, vector_dimension 3"),
        ("embeddings", {**_EMBEDDING, "model_version": "a/b"}, "a model version takes"),
        ("embeddings", {**_EMBEDDING, "deleted_at": _AT}, "is deleted"),
        ("embeddings", {**_EMBEDDING, "model_version": "m#attributes"}, "`k9 backup` and"),
        ("embeddings", {"product_id": "p", "model_version": "m"}, "embedding_vector is missing"),
    ],
)
def test_a_bad_entry_says_why(table: str, row: Any, words: str) -> None:
    """In words that name the attribute."""
    assert words in _reason(table, row)


def test_an_id_that_comes_twice_counts_once() -> None:
    """The first that holds; for embeddings an id a model version."""
    found = _read("reports", {**_REPORT, "title": ""}, _REPORT, _REPORT)
    assert [type(row) for row in found] == [BadEntry, LegacyRow, BadEntry]
    again = _read("embeddings", _EMBEDDING, {**_EMBEDDING, "model_version": "n"}, _EMBEDDING)
    assert [type(row) for row in again] == [LegacyRow, LegacyRow, BadEntry]
