import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.embedding_files.json_embeddings import LINE_BYTES_MAX
from core.embedding_files.readers import open_embeddings
from core.embedding_files.rows import Row
from core.errors import FileError
from core.models import BadRow


def _read(path: Path, rows_max: int = 1000) -> tuple[list[Row], list[BadRow]]:
    rows: list[Row] = []
    bad: list[BadRow] = []
    units = 0
    with open_embeddings(path) as source:
        for batch in source.batches(rows_max):
            assert len(batch.rows) + len(batch.bad) <= rows_max
            rows += batch.rows
            bad += batch.bad
            units += batch.units
    assert units == source.units
    return rows, bad


def _parquet(path: Path, ids: list[Any], vectors: list[Any], kind: pa.DataType) -> Path:
    table = pa.table({"product_id": ids, "vector": pa.array(vectors, type=kind), "extra": ids})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float16()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64())],
    ids=str,
)
def test_parquet_of_every_list_type_is_read_in_batches(tmp_path: Path, kind: pa.DataType) -> None:
    """Rows come out in order, as float32, whatever the width of the numbers and lists."""
    ids = [f"p{n}" for n in range(25)]
    vectors = [np.array([n, 0.5], dtype=np.float16) for n in range(25)]
    rows, bad = _read(_parquet(tmp_path / "a.parquet", ids, vectors, kind), rows_max=10)
    assert [row.product_id for row in rows] == ids
    assert [row.number for row in rows] == list(range(1, 26))
    assert all(row.vector.dtype == np.float32 for row in rows)
    assert rows[7].vector.tolist() == [7.0, 0.5]
    assert not bad


def test_parquet_names_rows_with_nulls(tmp_path: Path) -> None:
    """A null id, a null vector and a null among the numbers are each one bad row."""
    path = _parquet(
        tmp_path / "a.parquet",
        ["a", None, "c", "d", "e"],
        [[1.0, 2.0], [1.0, 2.0], None, [1.0, None], [3.0, 4.0]],
        pa.list_(pa.float32()),
    )
    rows, bad = _read(path)
    assert [(row.product_id, row.vector.tolist()) for row in rows] == [
        ("a", [1.0, 2.0]),
        ("e", [3.0, 4.0]),
    ]
    assert [(row.number, row.product_id, row.reason) for row in bad] == [
        (2, None, "product_id is null"),
        (3, "c", "vector is null"),
        (4, "d", "vector holds a null"),
    ]


def test_parquet_without_the_column_is_refused(tmp_path: Path) -> None:
    """The line says which column is missing, and which there are."""
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(
        FileError, match=r"has no 'product_id' and no 'vector' \(it has id\); say .* --id-column id"
    ):
        open_embeddings(tmp_path / "a.parquet")


def test_parquet_with_vectors_of_text_is_refused(tmp_path: Path) -> None:
    """A column of the wrong type is one line, not one a row."""
    path = _parquet(tmp_path / "a.parquet", ["a"], [["x"]], pa.list_(pa.string()))
    with pytest.raises(
        FileError, match="'vector' is of type list<element: string>; lists of numbers are read"
    ):
        _read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.npz"])
def test_a_file_that_is_something_else_is_one_line(tmp_path: Path, name: str) -> None:
    """Bytes that are no such file are refused by their name."""
    (tmp_path / name).write_bytes(b"neither one nor the other")
    with pytest.raises(FileError, match=name):
        open_embeddings(tmp_path / name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A missing file, and one of another kind, are said to be so."""
    with pytest.raises(FileError, match="no such file"):
        open_embeddings(tmp_path / "none.parquet")
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(
        FileError, match=r"is CSV or the like .*K9 imports Parquet, \.npz, and JSON"
    ):
        open_embeddings(tmp_path / "a.csv")


@pytest.mark.parametrize("names", [("product_ids", "vectors"), ("product_id", "vector")])
def test_npz_is_read_by_either_name(tmp_path: Path, names: tuple[str, str]) -> None:
    """Arrays in the plural or the singular, in batches."""
    vectors = np.arange(12, dtype=np.float64).reshape(6, 2)
    arrays: dict[str, Any] = dict(zip(names, (np.array(list("abcdef")), vectors), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    rows, bad = _read(tmp_path / "a.npz", rows_max=4)
    assert "".join(row.product_id for row in rows) == "abcdef"
    assert rows[5].vector.tolist() == [10.0, 11.0]
    assert not bad


def test_npz_never_unpickles(tmp_path: Path) -> None:
    """An array of objects would run code of the file's maker."""
    ids = np.array(["a", None], dtype=object)
    np.savez(tmp_path / "a.npz", product_ids=ids, vectors=np.zeros((2, 2)))
    with pytest.raises(FileError, match="holds Python objects, which are never read: save it as"):
        open_embeddings(tmp_path / "a.npz")


def test_npz_of_unequal_lengths_is_refused(tmp_path: Path) -> None:
    """One id a vector, or nothing."""
    np.savez(tmp_path / "a.npz", product_ids=np.array(["a"]), vectors=np.zeros((2, 2)))
    with pytest.raises(FileError, match="1 ids and 2 vectors"):
        open_embeddings(tmp_path / "a.npz")


def test_json_lines_name_every_bad_line_and_lose_no_good_one(tmp_path: Path) -> None:
    """Cut short, of the wrong type, too deep, too long, not UTF-8: each by its line's number."""
    lines = [
        b'\xef\xbb\xbf{"product_id": "a", "vector": [1, 2.5]}',
        b"",
        b'{"product_id": "b", "vector": [1',
        b'{"product_id": "c", "vector": [true]}',
        b'{"product_id": 4, "vector": [1]}',
        b'{"product_id": "e"}',
        b'{"product_id": "f", "vector": [NaN]}',
        b'{"product_id": "g", "vector": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"product_id": "h", "vector": [' + b"1," * LINE_BYTES_MAX + b"1]}",
        b'{"product_id": "\xff", "vector": [1]}',
        b'{"product_id": "z", "vector": [1e39, 1], "more": 1}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows, bad = _read(path)
    assert [(row.number, row.product_id) for row in rows] == [(1, "a"), (5, "4"), (11, "z")]
    assert np.isinf(rows[2].vector[0])  # for the validation to find
    assert [row.number for row in bad] == [3, 4, 6, 7, 8, 9, 10]
    assert all("\n" not in row.reason for row in bad)


def test_json_lines_come_in_batches(tmp_path: Path) -> None:
    """A long file is never in memory as a whole."""
    path = tmp_path / "a.ndjson"
    path.write_text(
        "".join(json.dumps({"product_id": f"p{n}", "vector": [n]}) + "\n" for n in range(25))
    )
    with open_embeddings(path) as source:
        sizes = [len(batch.rows) for batch in source.batches(10)]
    assert sizes == [10, 10, 5]
