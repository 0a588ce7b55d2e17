"""Parses entries of older data, in JSON or DynamoDB's JSON, into K9's records.

The JSON text of `preferences` is kept as it is, so that no number in it changes.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from core.dynamo import tables
from core.dynamo.wire import AttributeValue
from core.embedding_files.dynamodb_json import MEMBERS, key_problem, unwrap
from core.embedding_files.json_entries import Entry
from core.errors import Corrupt, Invalid, Unreadable
from core.identifiers import is_report_id, validate_model_version
from core.models import VERSION_MAX, Report, User, now, timestamp
from core.settings import Settings
from core.usecases.documents import is_object
from core.usecases.reports import ReportService
from core.usecases.users import preferences_problem, profile_problems
from core.vectors.arrays import as_vector
from deploy.data.migration.legacy_vectors import Binary, from_bytes, javascript_binary
from deploy.data.migration.store import LegacyEmbedding
from deploy.data.migration.timestamps import full_date, read_timestamp

T = TypeVar("T")
Record = User | Report | LegacyEmbedding

_USER_ID_BYTES_MAX: Final = 1024

_VALUE: Final = msgspec.json.Decoder(AttributeValue)
_TEXT: Final = msgspec.json.Decoder(str | None)
_TEXTS: Final = msgspec.json.Decoder(list[str] | None)
_NUMBERS: Final = msgspec.json.Decoder(list[float])
_WHOLE: Final = msgspec.json.Decoder(int)
_TIME: Final = msgspec.json.Decoder(str | float | None)
_RAW: Final = msgspec.json.Decoder(Raw)
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)

_KEYS: Final = {"users": "user_id", "reports": "id", "embeddings": "product_id"}
_KNOWN: Final = {
    "users": set(User.__struct_fields__),
    "reports": set(Report.__struct_fields__),
    "embeddings": {
        *("product_id", "model_version", "embedding_vector", "vector_dimension", "created_at"),
        *("updated_at", "deleted_at", "model_shard"),
    },
}


class LegacyRow(msgspec.Struct, frozen=True):
    """An entry that is valid."""

    entry: Entry
    id: str
    record: Record
    changed_at: str | None
    """When it changed (an embedding: was created), in K9's format; None if the data lacks it."""
    left_out: tuple[str, ...] = ()
    """Attributes that K9 does not store."""


class _KeyMissingError(Invalid):
    """An entry has no key of the table."""


class BadEntry(msgspec.Struct, frozen=True):
    """An entry that is not valid, and why."""

    entry: Entry
    id: str | None
    reason: str
    foreign: bool = False
    """Whether it has no key of the table at all, so that it is no row of it."""


class Deletion(msgspec.Struct, frozen=True):
    """An entry which says that a row was deleted."""

    entry: Entry
    id: str


_Members = dict[str, "bytes | Binary"]
"""Attribute → its JSON text."""


class RowParser:
    """Parses the entries of one table's data."""

    def __init__(self, table: str, settings: Settings, reports: ReportService) -> None:
        self._table = table
        self._records = settings.records
        self._reports = reports
        self._seen: set[int] = set()
        """64-bit hashes of the keys so far: some 60 bytes a row, as in `embedding_files`."""
        parsers: dict[str, Callable[[_Members], tuple[Record, str | None]]] = {
            "users": self._user,
            "reports": self._report,
            "embeddings": _embedding,
        }
        self._parse = parsers[table]

    def parse(self, entry: Entry) -> "LegacyRow | BadEntry | Deletion":
        """The row of an entry, or why it is not valid."""
        if entry.problem is not None:
            return BadEntry(entry, None, entry.problem)
        row_id: str | None = None
        try:
            members, deleted = _members(entry.text, self._table)
            row_id = _identifier(members, _KEYS[self._table])
            if deleted:
                return Deletion(entry, row_id)
            record, changed_at = self._parse(members)
            self._check_repeated(record, row_id)
        except _KeyMissingError as error:
            return BadEntry(entry, row_id, str(error), foreign=row_id is None)
        except (Invalid, Unreadable, Corrupt) as error:
            return BadEntry(entry, row_id, str(error))
        except RecursionError:
            return BadEntry(entry, row_id, "is nested too deep")
        left_out = tuple(sorted(members.keys() - _KNOWN[self._table]))
        return LegacyRow(entry, row_id, record, changed_at, left_out)

    def _check_repeated(self, record: Record, row_id: str) -> None:
        key = (row_id, record.model_version) if isinstance(record, LegacyEmbedding) else row_id
        digest = hash(key)
        if digest in self._seen:
            raise Invalid("came before in this file; the first one counts")
        self._seen.add(digest)

    def _user(self, members: _Members) -> tuple[User, str | None]:
        _check_not_deleted(members, "deleting_at")
        fields = {name: _text(members, name) for name in ("name", "email", "avatar_url")}
        problems = profile_problems(fields)
        preferences = _preferences(members)
        problem = preferences_problem(preferences, self._records)
        reasons = [f"{error.field} {error.message}" for error in problems]
        if problem:
            reasons.append(f"preferences {problem}")
        if reasons:
            raise Invalid("; ".join(reasons))
        created_at, updated_at, changed_at = _times(members)
        user_id = _user_id(members)
        bare = User(user_id, created_at, updated_at, preferences=preferences.decode())
        user = msgspec.structs.replace(bare, **fields, version=_version(members))
        return user, changed_at

    def _report(self, members: _Members) -> tuple[Report, str | None]:
        report_id = _identifier(members, "id")
        if not is_report_id(report_id):
            raise Invalid("id takes 1 to 128 of A-Z a-z 0-9 . _ ~ -, the first none of . and ~")
        fields: dict[str, Any] = {
            name: _text(members, name) for name in ("title", "author", "date", "reference")
        }
        if fields["date"]:
            fields["date"] = full_date(fields["date"])
        favorites = _decoded(members, "favorites", _TEXTS)
        valid = self._reports.validate({**fields, "favorites": favorites})
        created_at, updated_at, changed_at = _times(members)
        report = Report(
            id=report_id,
            user_id=_user_id(members),
            created_at=created_at,
            updated_at=updated_at,
            version=_version(members),
            **valid,
        )
        return report, changed_at


def _embedding(members: _Members) -> tuple[LegacyEmbedding, str | None]:
    _check_not_deleted(members, "deleted_at")
    model_version = _decoded(members, "model_version", _TEXT)
    if model_version is None:
        raise Invalid("model_version is missing")
    if tables.is_attributes_name(model_version):
        raise Invalid(
            "holds attributes, which are not migrated: `k9 backup` and `k9 restore` move them"
        )
    validate_model_version(model_version)
    dimension = _decoded(members, "vector_dimension", _WHOLE)
    vector = _vector(members, dimension)
    if dimension not in {None, len(vector)}:
        raise Invalid(f"embedding_vector has {len(vector)} numbers, vector_dimension {dimension}")
    product_id = _identifier(members, "product_id")
    return LegacyEmbedding(product_id, model_version, vector), _time(members, "created_at")


# --- members --------------------------------------------------------------------------------------


def _members(text: bytes, table: str) -> tuple[_Members, bool]:
    """The members of an entry as plain JSON, and whether it is of a deleted row.

    Raises:
        Unreadable: it is not a JSON object.
        Corrupt: it is DynamoDB's JSON, with a value of none of DynamoDB's types.
    """
    key, known = _KEYS[table], _KNOWN[table]
    try:
        found = unwrap(text, key)
        members = found.members
        if key in members and is_object(bytes(members[key])):
            _check_case(members[key])
            return {n: _plain(n, v) if n in known else b"null" for n, v in members.items()}, (
                found.deleted
            )
    except msgspec.MsgspecError as error:
        raise Unreadable(_one_line(error)) from None
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8") from None
    return {name: bytes(value) for name, value in members.items()}, found.deleted


def _check_case(value: Raw) -> None:
    """Raises: Unreadable: the type names are in lower case, as AWS Data Pipeline wrote them."""
    names = MEMBERS.decode(value).keys()
    if len(names) == 1 and not names.isdisjoint({"s", "n", "b"}):
        raise Unreadable(
            "has types in lower case, as AWS Data Pipeline exported them; export it to S3 again"
        )


def _plain(name: str, text: Raw) -> bytes | Binary:
    if name == "embedding_vector" and (binary := javascript_binary(bytes(text))):
        return binary
    value = _VALUE.decode(text)
    if name == "embedding_vector" and value.B is not None:
        return Binary(value.B)
    try:
        return _json_of(value)
    except Corrupt as error:
        raise Corrupt(f"{name} {error}") from None


def _json_of(value: AttributeValue) -> bytes:
    """A DynamoDB value as JSON text, with the digits of its numbers. Sets become arrays."""
    for name, encode in _ENCODERS.items():
        member = getattr(value, name)
        if member is not None:
            return encode(member)
    if value.B is not None or value.BS is not None:
        raise Corrupt("is binary, which cannot be JSON")
    raise Corrupt("is of none of DynamoDB's types")


def _object(parts: dict[str, AttributeValue]) -> bytes:
    texts = (msgspec.json.encode(name) + b":" + _json_of(part) for name, part in parts.items())
    return b"{" + b",".join(texts) + b"}"


def _number(text: str) -> bytes:
    if not _NUMBER.fullmatch(text):
        raise Corrupt("has a number that cannot be read")
    return text.encode()


_ENCODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "S": msgspec.json.encode,
    "N": _number,
    "BOOL": msgspec.json.encode,
    "NULL": lambda _: b"null",
    "M": _object,
    "L": lambda parts: b"[" + b",".join(map(_json_of, parts)) + b"]",
    "SS": msgspec.json.encode,
    "NS": lambda texts: b"[" + b",".join(map(_number, texts)) + b"]",
}


def _decoded(members: Mapping[str, Any], name: str, decoder: "msgspec.json.Decoder[T]") -> T | None:
    value = members.get(name)
    if value is None:
        return None
    if isinstance(value, Binary):
        raise Invalid(f"{name} is binary")
    try:
        return decoder.decode(value)
    except msgspec.MsgspecError as error:
        raise Invalid(f"{name}: {_one_line(error)}") from None
    except UnicodeDecodeError:
        raise Unreadable(f"{name} is not UTF-8") from None


def _identifier(members: Mapping[str, Any], key: str) -> str:
    text: str | None = _decoded(members, key, _TEXT)
    if text is None:
        raise _KeyMissingError(key_problem(members, key))
    return text


def _user_id(members: Mapping[str, Any]) -> str:
    text = _identifier(members, "user_id")
    if not text.strip() or len(text.encode()) > _USER_ID_BYTES_MAX:
        raise Invalid(f"user_id takes 1 to {_USER_ID_BYTES_MAX} bytes, and is not blank")
    return text


def _text(members: Mapping[str, Any], name: str) -> str | None:
    """A text; None if it is blank."""
    text = _decoded(members, name, _TEXT)
    return text if text and text.strip() else None


def _preferences(members: Mapping[str, Any]) -> bytes:
    """The JSON text of an object, which may itself be in a string."""
    value = members.get("preferences", b"null").strip()
    if value == b"null":
        return b"{}"
    if value.startswith(b'"'):
        inner = (_decoded(members, "preferences", _TEXT) or "").encode()
        try:
            _RAW.decode(inner)
        except msgspec.MsgspecError:
            raise Invalid("preferences must be a JSON object") from None
        return inner.strip()
    return bytes(value)


def _vector(members: Mapping[str, Any], dimension: int | None) -> NDArray[np.float32]:
    value = members.get("embedding_vector")
    if value is None:
        raise Invalid("embedding_vector is missing")
    if not isinstance(value, Binary) and is_object(value):
        value = javascript_binary(value) or value
    if isinstance(value, Binary):
        return from_bytes(value.data, dimension, own="model_shard" in members)
    numbers = _decoded(members, "embedding_vector", _NUMBERS)
    return as_vector(numbers or ())


def _time(members: Mapping[str, Any], name: str) -> str | None:
    value = _decoded(members, name, _TIME)
    if value is None or value == "":
        return None
    try:
        return read_timestamp(value)
    except ValueError as error:
        raise Invalid(f"{name} {error}") from None


def _times(members: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """(created_at, updated_at, changed_at): one that is missing is the other, or now.

    changed_at is None if both are missing.
    """
    created_at, updated_at = _time(members, "created_at"), _time(members, "updated_at")
    changed_at = updated_at or created_at
    moment = changed_at or timestamp(now())
    return created_at or moment, moment, changed_at


def _version(members: Mapping[str, Any]) -> int:
    """The version of a row that K9 wrote; older data has none."""
    version = _decoded(members, "version", _WHOLE) or 1
    if version > VERSION_MAX:
        raise Invalid(
            f"version has {len(str(version))} digits, the most is {len(str(VERSION_MAX))}"
        )
    return max(1, version)


def _check_not_deleted(members: Mapping[str, Any], attribute: str) -> None:
    if members.get(attribute, b"null") != b"null":
        raise Invalid(f"is deleted ({attribute}), and stays deleted")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
