"""Files as people bring them to `k9 migrate`: what they came out of, and what is said of others."""

import gzip
import json
import os
import threading
from base64 import b64encode
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from core.embedding_files.file_input import FREE_BYTES, open_input
from core.embedding_files.json_entries import entries
from core.errors import FileError
from core.repositories.reports import ReportRepository
from core.settings import Files, Settings
from core.usecases.reports import ReportService
from deploy.data.migration.legacy_rows import BadEntry, Deletion, LegacyRow, RowParser
from deploy.data.migration.store import LegacyEmbedding

CASES = Path(__file__).parents[2] / "cases"
LIMITS = Files()
_VECTOR = {"L": [{"N": "1"}, {"N": "0.25"}, {"N": "3"}]}


def _read(
    path: Path, table: str = "embeddings", limits: Files = LIMITS
) -> list[LegacyRow | BadEntry | Deletion]:
    settings = Settings()
    parser = RowParser(table, settings, ReportService(cast("ReportRepository", None), settings))
    with open_input(path, limits) as file:
        return [parser.parse(entry) for entry in entries(file)]


def _ids(found: list[LegacyRow | BadEntry | Deletion]) -> list[str]:
    """The ids of rows of which none is bad."""
    assert [row for row in found if not isinstance(row, LegacyRow)] == []
    return [row.id for row in found if isinstance(row, LegacyRow)]


def _item(product_id: str) -> dict[str, Any]:
    return {
        "product_id": {"S": product_id},
        "model_version": {"S": "m"},
        "embedding_vector": _VECTOR,
    }


def _key(product_id: str) -> dict[str, Any]:
    return {"product_id": {"S": product_id}, "model_version": {"S": "m"}}


def _file(directory: Path, content: Any) -> Path:
    path = directory / "data.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


FIVE = ["e0", "e1", "e2", "e3", "e4"]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("a23_export.json", FIVE),
        ("a23_export.json.gz", FIVE),
        ("a29_capacity.json", FIVE),
        ("a29_js_v3.json", FIVE),
        ("a29_meta_first.json", FIVE),
        ("a30_batch_write.json", FIVE[:3]),
        ("a31_get_item.json", ["e1"]),
        ("a31_single.json", ["e3"]),
    ],
)
def test_each_form_of_dynamodb_is_read(name: str, ids: list[str]) -> None:
    """Exports, replies with members in any order, requests, and one item alone."""
    assert _ids(_read(CASES / name)) == ids


@pytest.mark.parametrize(
    ("name", "table", "ids"),
    [
        ("d1_one_bad_version.json", "users", {"h1-v1", "h1-v3", "h1-v4"}),
        ("d2_version_ns.json", "reports", {"h1-ns-0", "h1-ns-1", "h1-ns-2"}),
    ],
)
def test_a_row_with_a_huge_version_takes_no_other_along(
    name: str, table: str, ids: set[str]
) -> None:
    """The rows around it are read."""
    assert ids <= {row.id for row in _read(CASES / name, table) if isinstance(row, LegacyRow)}


def test_doubles_without_a_dimension_are_refused() -> None:
    """Their bytes would read as twice as many float32, all of them wrong."""
    found = _read(CASES / "a32_float64_384.json")
    assert len(found) == 40
    for row in found:
        assert isinstance(row, BadEntry)
        assert "768 numbers of float32, or 384 of float64; add vector_dimension" in row.reason


@pytest.mark.parametrize("number_type", ["<f4", "<f8", "<f2"])
def test_a_dimension_says_what_the_bytes_are(number_type: str, tmp_path: Path) -> None:
    """A Binary of doubles or half floats is read as such where its length tells."""
    numbers = np.array([0.5, -2.0, 0.25, 1.0], number_type)
    item = {**_item("p"), "embedding_vector": {"B": b64encode(numbers.tobytes()).decode()}}
    (row,) = _read(_file(tmp_path, {**item, "vector_dimension": {"N": "4"}}))
    assert isinstance(row, LegacyRow)
    assert isinstance(row.record, LegacyEmbedding)
    assert row.record.vector.tolist() == [0.5, -2.0, 0.25, 1.0]
    (row,) = _read(_file(tmp_path, {**item, "vector_dimension": {"N": "3"}}))
    assert isinstance(row, BadEntry)
    assert "vector_dimension is 3" in row.reason


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("form", ["Uint8Array", "Buffer"])
def test_bytes_as_javascript_prints_them(form: str, typed: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Its SDKs give arrays of bytes, which JSON makes objects of."""
    data = list(np.array([0.5, -2.0, 0.25], "<f4").tobytes())
    value: dict[str, Any] = {"type": "Buffer", "data": data}
    if form == "Uint8Array":
        value = {str(at): byte for at, byte in enumerate(data)}
    item: dict[str, Any] = {**_item("p"), "embedding_vector": {"B": value}}
    if not typed:
        item = {"product_id": "p", "model_version": "m", "embedding_vector": value}
    (row,) = _read(_file(tmp_path, {"Items": [item]}))
    assert isinstance(row, LegacyRow), row
    assert isinstance(row.record, LegacyEmbedding)
    assert row.record.vector.tolist() == [0.5, -2.0, 0.25]


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(
    "data",
    [1540, 10**20, -1, True, None, "AACAPw==", {}, *([v] * 4 for v in (256, 10**20, True, "1"))],
)
def test_buffers_without_a_list_of_bytes_are_bad_rows(
    data: Any,
    typed: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    """A number is no length of zeros, and no size of memory; the rows after it are read."""
    value = {"type": "Buffer", "data": data}
    item: dict[str, Any] = {**_item("p"), "embedding_vector": {"B": value}}
    if not typed:
        item = {"product_id": "p", "model_version": "m", "embedding_vector": value}
    bad, row = _read(_file(tmp_path, {"Items": [item, _item("q")]}))
    assert isinstance(bad, BadEntry)
    assert _ids([row]) == ["q"]


def test_rows_of_k9s_own_are_float32(tmp_path: Path) -> None:
    """They say so by their layout."""
    numbers = np.arange(4, dtype="<f4")
    item = {
        **_item("p"),
        "embedding_vector": {"B": b64encode(numbers.tobytes()).decode()},
        "model_shard": {"S": "m#3"},
    }
    assert _ids(_read(_file(tmp_path, item))) == ["p"]


@pytest.mark.parametrize(
    "content",
    [
        {"Items": [_item("a"), _item("b")], "LastEvaluatedKey": None},
        {"LastEvaluatedKey": {}, "Items": [_item("a"), _item("b")], "ScannedCount": 2},
        {"Responses": {"k9-embeddings-dev": [_item("a"), _item("b")]}, "UnprocessedKeys": {}},
        {"Responses": [{"Item": _item("a")}, {"Item": _item("b")}]},
        {"RequestItems": {"t": [{"PutRequest": {"Item": _item(name)}} for name in "ab"]}},
        {"TransactItems": [{"Put": {"TableName": "t", "Item": _item(name)}} for name in "ab"]},
        {"Records": [{"eventName": "INSERT", "dynamodb": {"NewImage": _item(n)}} for n in "ab"]},
        [{"Item": _item("a")}, {"Item": _item("b")}],
        b'{"Items": []}' + json.dumps({"Items": [_item("a"), _item("b")]}).encode(),
        b",\n".join(json.dumps(_item(name), indent=2).encode() for name in "ab"),
        b"".join(json.dumps(_item(name), indent=2).encode() for name in "ab"),
        json.dumps(_item("a")).encode() + b"\n" + json.dumps(_item("b"), indent=2).encode(),
        b" ".join(json.dumps(_item(name)).encode() for name in "ab"),
    ],
)
@pytest.mark.parametrize(
    "encode",
    [
        lambda data: data,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.decode().encode("utf-16"),
        lambda data: data.decode().encode("utf-16-be"),
        gzip.compress,
        lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:].decode().encode()),
        lambda data: gzip.compress(data.decode().encode("utf-16")),
    ],
    ids=["utf-8", "mark", "utf-16", "utf-16-be", "gzip", "two gzip members", "gzip of utf-16"],
)
def test_every_form_in_every_encoding(content: Any, encode: Any, tmp_path: Path) -> None:
    """The name of the file says nothing of any of them."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    assert _ids(_read(_file(tmp_path, encode(data)))) == ["a", "b"]


def test_deletions_are_left_out_and_said(tmp_path: Path) -> None:
    """Of an incremental export and of requests: they are neither rows nor bad."""
    written = {"WriteTimestampMicros": {"N": "1714557600123456"}}
    lines = [
        {"Metadata": written, "Keys": _key("a"), "NewImage": _item("a")},
        {"Metadata": written, "Keys": _key("b")},
        {"Metadata": written, "Keys": _key("c"), "OldImage": _item("c")},
        {"eventName": "REMOVE", "dynamodb": {"Keys": _key("d")}},
    ]
    found = _read(_file(tmp_path, b"\n".join(json.dumps(line).encode() for line in lines)))
    assert isinstance(found[0], LegacyRow)
    assert [row.id for row in found if isinstance(row, Deletion)] == ["b", "c", "d"]
    (row,) = _read(_file(tmp_path, {"t": [{"DeleteRequest": {"Key": _key("e")}}]}))
    assert isinstance(row, Deletion)


@pytest.mark.parametrize(
    "page",
    [
        {"Items": [_item("a")], "LastEvaluatedKey": _key("a")},
        {"LastEvaluatedKey": _key("a"), "Items": [_item("a")], "Count": 1},
        {"Responses": {"t": [_item("a")]}, "UnprocessedKeys": {"t": {"Keys": [_key("b")]}}},
    ],
)
def test_a_reply_that_goes_on_elsewhere_is_bad(page: Any, tmp_path: Path) -> None:
    """Wherever in it that stands; a further page makes it good."""
    row, missing = _read(_file(tmp_path, page))
    assert isinstance(row, LegacyRow)
    assert isinstance(missing, BadEntry)
    assert "rows are missing" in missing.reason
    pages = json.dumps(page) + "\n" + json.dumps({"Items": [_item("b")]})
    assert _ids(_read(_file(tmp_path, pages.encode()))) == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"product_id,vector\na,1\n", "is CSV or the like (it begins with 'product_id,vector')"),
        (b"<html>", "is HTML or XML"),
        (b"user_id: a\n", "is text (it begins with 'user_id: a')"),
        (b"PAR1....", "is a Parquet file"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"\x80\x04\x95....", "is a Python pickle, which K9 never reads"),
        (b"\x28\xb5\x2f\xfd....", "is compressed with zstd (gzip is read)"),
        (b"\xe0\x01\x00\xea....", "is Amazon Ion (export it as DYNAMODB_JSON)"),
        (b"SQLite format 3\x00", "is an SQLite database"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "is gzip within gzip"),
        (b"[[1, 2], [3, 4]]", "is an array of arrays"),
        (b"[0.5, 2]", "is an array of numbers"),
        (b'["a"]', "is an array of strings"),
    ],
)
def test_other_forms_are_refused_by_name(data: bytes, words: str, tmp_path: Path) -> None:
    """In one line, with what is read instead."""
    with pytest.raises(FileError) as refused:
        _read(_file(tmp_path, data))
    assert words in str(refused.value)
    assert "`k9 migrate` reads JSON: arrays, lines or documents" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\xff\xfe{\x00}", "is not valid UTF-16"),
        (gzip.compress(b'{"a": 1}' * 1000, mtime=0)[:-9], "its gzip data is damaged or truncated"),
        (gzip.compress(b'{"a": 1}', mtime=0) + b"more", "its gzip data is damaged or truncated"),
    ],
)
def test_damaged_files_are_said_to_be_so(data: bytes, words: str, tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(FileError, match=words):
        _read(_file(tmp_path, data))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": {"S": "x"}, "b": 1}, "product_id is missing (it has 'name', 'b')"),
        ({"manifestFilesS3Key": "x", "version": "1"}, "is the manifest of an export to S3"),
        ({"dataFileS3Key": "x", "itemCount": 1}, "is the manifest of an export to S3"),
        ({"product_id": {"s": "a"}}, "types in lower case"),
        ({"ConsumedCapacity": {}}, "product_id is missing"),
        ({}, "product_id is missing (it has no member)"),
    ],
)
def test_an_object_of_another_form_says_what_it_has(entry: Any, words: str, tmp_path: Path) -> None:
    """So that its owner sees what it is."""
    (row,) = _read(_file(tmp_path, entry))
    assert isinstance(row, BadEntry)
    assert words in row.reason


def test_a_pretty_document_that_is_broken_is_one_line(tmp_path: Path) -> None:
    """The documents around it are read."""
    documents = [json.dumps(_item(name), indent=1) for name in "abc"]
    documents[1] = documents[1].replace("}\n}", "\n}")
    first, bad, last = _read(_file(tmp_path, "\n".join(documents).encode()))
    assert isinstance(first, LegacyRow)
    assert isinstance(bad, BadEntry)
    assert isinstance(last, LegacyRow)
    assert last.id == "c"


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """It has no length and no second reading."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = gzip.compress(json.dumps([_item("a"), _item("b")]).encode())
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    assert _ids(_read(pipe)) == ["a", "b"]
    writer.join()


def test_a_directory_is_said_to_be_one(tmp_path: Path) -> None:
    """With how to join its files."""
    with pytest.raises(FileError, match=r"is a directory; name one file in it, or join"):
        _read(tmp_path)


def test_a_gzip_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    """By the setting's name, once it has decoded to more than is safe anyway."""
    path = tmp_path / "data.json"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(FREE_BYTES // 2**20 + 2):
            file.write(b" " * 2**20)
    with pytest.raises(FileError, match=r"200 times .*K9_FILE_EXPANSION_MAX"):
        _read(path)
    assert _read(path, limits=Files(file_expansion_max=2000)) == []
    with pytest.raises(FileError, match=r"1,000 bytes \(K9_FILE_DECODED_BYTES_MAX\)"):
        _read(path, limits=Files(file_expansion_max=2000, file_decoded_bytes_max=1000))
