"""Every format that K9 stores or sends between its processes, with a sample of each.

`tests/golden/formats/NAME-1.*` has the sample as the first release wrote it (23e14f8, or the one
that began with the format), `NAME-2.*` as the one that changed it, and so on. The highest is what
is written now; all of them are read.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec

from api.auth.keys import _CachedKeys
from core.attributes.column_writer import ColumnWriter
from core.attributes.columns import Columns
from core.attributes.values import Attributes, decode_attributes
from core.dynamo.cursors import Cursors
from core.dynamo.expressions import Update
from core.dynamo.items import attribute_of
from core.dynamo.wire import Item, RequestItem
from core.errors import FieldError
from core.index.files import COLUMNS
from core.index.manifest import (
    Counts,
    FileInfo,
    Manifest,
    MatrixInfo,
    RecentRows,
    Software,
    decode_manifest,
)
from core.models import (
    Build,
    BuildParameters,
    Embedding,
    Model,
    Progress,
    Report,
    StoredAttributes,
    User,
    Watermark,
)
from core.notifications import ChangeNotification
from core.queue import BuildJob, DeletionJob, deserialize, serialize
from core.repositories import attribute_items, build_rows, embedding_rows, models
from core.repositories.idempotency import _CODEC, _Record
from core.repositories.reports import REPORT_CODEC
from core.repositories.users import USER_CODEC
from core.results import (
    CurrentBuild,
    DeletedEmbedding,
    DeletedReport,
    LoadedBuild,
    ModelSummary,
    PatchedAttributes,
    Refusal,
    Result,
    StoredBatch,
    StoredEmbedding,
)
from core.vectors.changes import Changes, ProductChange
from core.vectors.parameters import Effort, IndexInfo, Layout, Recall, RecallBand, ZeroRecall
from core.versions import VersionRecord
from core.watermarks import Watermarks
from deploy.data import archive
from tests.golden import import_formats
from tests.golden.format import Format, row

_KEY: Final = "Z29sZGVuLWZpbGVzLW9mLXRlc3RzLTdkMWYwYzJhOWI="
"""Of the sealed tokens: 32 bytes in base64."""
_NONCE: Final = bytes(range(12))
_NOON: Final = "2026-11-27T12:00:00.000000Z"
_ONE: Final = "2026-11-27T13:00:00.000000Z"
_MICROSECONDS: Final = 1_795_780_800_000_000


def _updated(item: RequestItem, update: Update) -> RequestItem:
    """A row after a change to it."""
    values = {name: attribute_of(value) for name, value in update.set.items() if value is not None}
    return {name: v for name, v in {**item, **values}.items() if name not in update.remove}


_PARAMETERS: Final = BuildParameters(0.9, 5, deterministic=True, force=True)
_BUILD_ID: Final = "01a21eb4605588e8af5df56c4ce282a7"
_PREFIX: Final = f"environments/golden/indexes/m-1/{_BUILD_ID}/2/"
_TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_MODEL: Final = Model(
    "m-1",
    dimension=4,
    metric="l2",
    shards=8,
    created_at=_NOON,
    epoch=3,
    current_build_id=_BUILD_ID,
    current_fence=2,
    open_build_id="01a21eb467929f234fa210bc02b4fc33",
    pinned=True,
    generation=_MICROSECONDS,
    deleting_at=_ONE,
)
_FIRST_MODEL: Final = Model("m-0", dimension=4, metric="cosine", shards=8, created_at=_NOON)
_VECTOR: Final = b"\x00\x00\x80?\x00\x00\x00\xc0\x00\x00\x00?\x00\x00\x00\x00"
_MANIFEST: Final = Manifest(
    model_version="m-1",
    build_id=_BUILD_ID,
    epoch=3,
    built_at=_ONE,
    watermark=_NOON,
    dimension=4,
    metric="l2",
    counts=Counts(rows=1000, tombstones=2, quarantined={"dimension": 1}),
    parameters=_PARAMETERS,
    index=IndexInfo(
        "hnsw_sq8",
        "a graph over codes",
        Layout(4, "l2", scale=0.5, augmented=False),
        bytes=48_000,
        build={"links": 30, "note": "x", "share": 0.5},
        positions=990,
        efforts=(Effort(k=10, breadth=64, candidates=20), Effort(k=100, breadth=128, candidates=9)),
        norm_max=2.5,
        near_copies=10,
        near_copies_max=4,
    ),
    recall=Recall(
        0.97, 10, 0.9, 1000, "held out", 0.96, ZeroRecall(1000, 1, 0.01, "binomial", 0.5)
    ),
    matrix=MatrixInfo(k=5, exact=False, recall=0.98),
    files={"ids": FileInfo("ab" * 32, 1234, "c2hh")},
    resident_bytes=60_000,
    software=Software("0.1.0", "1.15.1", "2.4.0", "avx2", 2),
    stages={"pull": 1.5},
    cost={"read_units": 12.5},
    pulled_at=_ONE,
    recent=RecentRows(_NOON, 3, "cd" * 32),
    changes=Changes(
        "01a21eb45b4038e3a8f7dae6524d1ff0",
        998,
        2,
        1,
        5,
        990,
        0.75,
        (ProductChange("p/1", 0.25),),
        ("p-new",),
        ("p-old",),
    ),
    generation=_MICROSECONDS,
    rows_with_attributes=900,
    filtered_recall=(RecallBand(0.1, 1.0, 0), RecallBand(1.0, 0.97, 64)),
    recent_attributes=RecentRows(_NOON, 2, "ef" * 32),
    reused_build_id="01a21eb45b4038e3a8f7dae6524d1ff0",
    format=2,
)
_PUBLISHED: Final = Build(
    _BUILD_ID,
    "m-1",
    "published",
    _NOON,
    _PARAMETERS,
    Progress("publish", 1, 1),
    fence=2,
    holder="0a604a80937a3cbf",
    lease_until_ms=_MICROSECONDS // 1000,
    started_at=_NOON,
    ended_at=_ONE,
    error="of an earlier try",
    manifest={"model_version": "m-1", "cost": {"read_units": 12.5}},
    automatic=True,
    faults=1,
    unreturned=2,
    retired_at=_ONE,
    removed_at=_ONE,
    prefix=_PREFIX,
    generation=_MICROSECONDS,
    request_id="request-1",
    trace=_TRACE,
)
_OPEN: Final = Build(_BUILD_ID, "m-1", "queued", _NOON, _PARAMETERS)
_OPEN_LATER: Final = msgspec.structs.replace(_OPEN, generation=_MICROSECONDS)
_VERIFICATION: Final = msgspec.structs.replace(_OPEN, verifies="01a21eb467973b54709df4c2e127bffc")
_EMBEDDING: Final = Embedding("p/1", "m-1", _VECTOR, 4, _NOON, generation=_MICROSECONDS)
_TOMBSTONE: Final = Embedding("p/1", "m-1", None, 0, _ONE, _ONE, _MICROSECONDS)
_ATTRIBUTES: Final[Attributes] = {
    "brand": "Ünïcode",
    "price": 19.9,
    "huge": 1e308,
    "stock": 3,
    "sold": False,
    "tags": ["a", "b"],
}
_ROWS: Final[list[Attributes]] = [
    _ATTRIBUTES,
    {},
    {"brand": "acme", "price": 5, "sold": True, "tags": []},
    {"brand": "acme", "price": "5"},
]
_BACKUP: Final = archive.Manifest(
    "0.1.0",
    "golden",
    _NOON,
    _ONE,
    {"users": archive.TableEntry("k9-users-golden", 1, [archive.FileEntry("f", 1, 9, "ab")])},
).sealed()
_HELD: Final = _CachedKeys(
    "https://keys.test/jwks.json",
    1.5,
    [{"kty": "RSA", "kid": "key-1", "use": None, "alg": None, "n": "AQAB", "e": "AQAB"}],
)


_USER: Final = User("u", _NOON, _ONE, "N", "e@x.test", "https://x.test/a", '{"a":1.50}', 7, _ONE)
_REPORT: Final = Report("r", "u", "T", _NOON, _ONE, "A", "2026-11-27", "R", ("p/1", "p2"), 7)


def _live_row(row: Embedding) -> RequestItem:
    return embedding_rows.live_row(_MODEL, row.product_id, row.vector or b"", row.updated_at)


def _tombstone_row(tombstone: Embedding) -> RequestItem:
    deleted = DeletedEmbedding(tombstone.product_id, tombstone.updated_at, tombstone.generation)
    update, _ = embedding_rows.tombstone_update(_MODEL, deleted)
    return _updated(_live_row(_EMBEDDING), update)


def _attributes_row(attributes: Attributes | None, *, alone: bool = False) -> RequestItem:
    with patch("core.repositories.attribute_items.secrets.token_hex", lambda _: "ab" * 8):
        if attributes is None:
            return attribute_items.attributes_tombstone(_MODEL, "p/1", _ONE)
        return attribute_items.attributes_item(_MODEL, "p/1", attributes, _NOON, alone=alone)


def _attributes(item: Item) -> Attributes | None:
    deleted = "deleted_at" in item
    return None if deleted else attribute_items.stored_attributes(item, _MICROSECONDS)


def _columns(rows: list[Attributes]) -> bytes:
    writer = ColumnWriter(len(rows), bytes_max=1 << 20)
    for attributes in rows:
        writer.append(attributes)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, COLUMNS)
        writer.write(path)
        return path.read_bytes()


def _read_columns(data: bytes) -> list[Attributes]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, COLUMNS)
        path.write_bytes(data)
        columns = Columns(path, len(_ROWS))
        return [columns.attributes(row) for row in range(columns.rows)]


def _result(sample: Result) -> Format[Result]:
    """What an idempotency key has of a write."""
    name = str(type(sample).__struct_config__.tag)
    decode = msgspec.json.Decoder(Result).decode
    return Format(f"result-{name}", "json", sample, msgspec.json.encode, decode)


def _sealed(position: Mapping[str, str | int]) -> bytes:
    with patch("core.dynamo.cursors.token_bytes", lambda _: _NONCE):
        return _cursors().seal(position, caller="caller", query="query").encode()


def _opened(data: bytes) -> dict[str, str | int]:
    return _cursors().open(data.decode(), caller="caller", query="query")


def _cursors() -> Cursors:
    return Cursors([_KEY], 3600, now=lambda: _MICROSECONDS / 1e6)


def _watermark(data: bytes) -> Watermark:
    return Watermarks([_KEY]).decode(data.decode()).watermark


_RECORD: Final = _Record(
    "u", "k", "ab" * 32, "completed", "cd" * 16, 1_795_780_800_000, 1_795_867_200
)
_RESULTS: Final[tuple[Result, ...]] = (
    _USER,
    _REPORT,
    DeletedReport(),
    StoredEmbedding("p/1", 4, _NOON, _MICROSECONDS, created=True),
    DeletedEmbedding("p/1", _NOON, _MICROSECONDS),
    PatchedAttributes("p/1", _ATTRIBUTES, _NOON, _MICROSECONDS),
    StoredBatch(2, Watermark(_NOON, None, _MICROSECONDS)),
    _PUBLISHED,
    ModelSummary(
        _MODEL,
        CurrentBuild(_BUILD_ID, _NOON, 1000, 1, "hnsw_sq8", 0.97, _NOON),
        LoadedBuild(_BUILD_ID, 1000, 60_000, _ONE),
    ),
    Refusal("Invalid", "the request is not valid", (FieldError("title", "is required"),)),
)

FORMATS: Final[tuple[Format[Any], ...]] = (
    row("user", _USER, USER_CODEC.encode, USER_CODEC.decode),
    row("report", _REPORT, REPORT_CODEC.encode, REPORT_CODEC.decode),
    row("idempotency-result", msgspec.structs.replace(_RECORD, media="msgpack", result="{}"),
         _CODEC.encode, _CODEC.decode),
    row("idempotency-reply",
         msgspec.structs.replace(_RECORD, state="done", status=201, content_type="text/plain",
                                 body=b"{}", headers=["location", "/reports/r"]),
         _CODEC.encode, _CODEC.decode, written=False),
    *map(_result, (*_RESULTS, *import_formats.RESULTS)),
    *import_formats.FORMATS,
    row("embedding", _EMBEDDING, _live_row, embedding_rows.decode),
    row("tombstone", _TOMBSTONE, _tombstone_row, embedding_rows.decode),
    row("attributes", _ATTRIBUTES, _attributes_row, _attributes),
    row("attributes-tombstone", None, _attributes_row, _attributes),
    row("attributes-alone", StoredAttributes("p/1", '{"price":1.5}', _NOON, alone=True),
         lambda stored: _attributes_row(decode_attributes(stored.text), alone=stored.alone),
         attribute_items.unread_attributes),
    row("model", msgspec.structs.replace(_MODEL, has_attributes=True,
                                         internal_attributes=("cost", "supplier")),
         models.encode_model, models.decode_model),
    row("model-without-generation", _FIRST_MODEL, models.encode_model, models.decode_model),
    row("build", _PUBLISHED, build_rows.BUILD_CODEC.encode, build_rows.decode),
    row("build-open", _OPEN, build_rows.open_row, build_rows.decode),
    row("build-open-later", _OPEN_LATER, build_rows.open_row, build_rows.decode),
    row("verification-open", _VERIFICATION, build_rows.open_row, build_rows.decode),
    Format("manifest", "json", _MANIFEST, lambda manifest: manifest.encode(), decode_manifest),
    Format("columns", "columns", _ROWS, _columns, _read_columns),
    Format("cached-version", "json",
           VersionRecord("m-1", _BUILD_ID, 2, _PREFIX, {"model_version": "m-1"}),
           msgspec.json.encode, lambda data: msgspec.json.decode(data, type=VersionRecord)),
    Format("cached-models", "json", [_MODEL, _FIRST_MODEL],
           msgspec.json.encode, lambda data: msgspec.json.decode(data, type=list[Model])),
    Format("cached-keys", "json", _HELD,
           msgspec.json.encode, lambda data: msgspec.json.decode(data, type=_CachedKeys)),
    Format("backup", "json", _BACKUP,
           msgspec.json.encode, lambda data: msgspec.json.decode(data, type=archive.Manifest)),
    Format("notification", "msgpack", ChangeNotification("m-1", ("p/1", "p2"), 1_795_780_800_000),
           msgspec.msgpack.encode,
           lambda data: msgspec.msgpack.decode(data, type=ChangeNotification)),
    Format("job-build", "msgpack", BuildJob(_BUILD_ID, 2, _TRACE),
           lambda job: serialize({"a": [job]}),
           lambda data: msgspec.convert(deserialize(data)["a"][0], BuildJob)),
    Format("job-deletion", "msgpack", DeletionJob("u"),
           lambda job: serialize({"a": [job]}),
           lambda data: msgspec.convert(deserialize(data)["a"][0], DeletionJob)),
    Format("watermark", "txt", Watermark(_NOON, "p/1", _MICROSECONDS),
           lambda watermark: Watermarks([_KEY]).encode(watermark).encode(), _watermark),
    Format("watermark-batch", "txt", Watermark(_NOON),
           lambda watermark: Watermarks([_KEY]).encode(watermark).encode(), _watermark),
    Format("cursor", "txt", {"product_id": "p/1", "shard": 3}, _sealed, _opened),
)  # fmt: skip
