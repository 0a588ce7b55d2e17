"""Attributes in files of embeddings: read from each format, and what is wrong is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.attributes.values import attribute_problems
from core.embedding_files.columns import Columns, parse_attributes
from core.embedding_files.readers import open_embeddings
from core.errors import FileError

NAMES = ("brand", "price", "stock", "sold", "tags", "rare")
ROWS: list[dict[str, Any]] = [
    {"brand": "Ünï", "price": 1.5, "stock": 3, "sold": True, "tags": ["a", "b"], "rare": None},
    {"brand": None, "price": None, "stock": None, "sold": None, "tags": None, "rare": None},
    {"brand": "x" * 300, "price": 2.0, "stock": 0, "sold": False, "tags": [], "rare": "r"},
]


def parquet(path: Path, **columns: Any) -> Path:
    """A file of three rows with these columns, and ids and vectors."""
    table = {"product_id": ["a", "b", "c"], "vector": [[1.0, 2.0]] * 3, **columns}
    pq.write_table(pa.table(table), path)
    return path


def as_parquet(path: Path) -> Path:
    """The rows, their text with a dictionary and without."""
    brands = pa.array([row["brand"] for row in ROWS]).dictionary_encode()
    others = {name: pa.array([row[name] for row in ROWS]) for name in NAMES[1:]}
    return parquet(path, brand=brands, **others)


def as_lines(path: Path) -> Path:
    """The rows, compressed; the second without the names."""
    rows = [
        {"product_id": i, "vector": [1, 2], **({} if i == "b" else row)}
        for i, row in zip("abc", ROWS, strict=True)
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def read(path: Path, *names: str, rows_max: int = 2) -> list[dict[str, Any] | None]:
    """The attributes of each row."""
    with open_embeddings(path, Columns(attributes=names)) as reader:
        batches = list(reader.batches(rows_max))
    assert not [row for batch in batches for row in batch.bad]
    return [row.attributes for batch in batches for row in batch.rows]


@pytest.mark.parametrize("write", [as_parquet, as_lines])
def test_columns_become_attributes(tmp_path: Path, write: Any) -> None:
    """Of each type; a null or missing one is none, and what is not named is not read."""
    path = write(tmp_path / "file")
    expected = [{n: v for n, v in row.items() if v is not None} for row in ROWS]
    assert read(path, *NAMES) == expected
    assert read(path, "stock") == [{"stock": 3}, {}, {"stock": 0}]
    assert read(path) == [None, None, None]


def test_arrays_of_npz_become_attributes(tmp_path: Path) -> None:
    """Text, numbers and booleans; NaN is how an array says that there is none."""
    np.savez(
        tmp_path / "a.npz",
        product_ids=np.array(["a", "b"]),
        vectors=np.ones((2, 2), np.float32),
        brand=np.array(["Ünï", ""]),
        code=np.array([b"x", b"\xff"]),
        price=np.array([1.5, np.nan]),
        stock=np.array([3, 0], np.uint8),
        sold=np.array([True, False]),
    )
    found = read(tmp_path / "a.npz", "brand", "code", "price", "stock", "sold", rows_max=1)
    assert found == [
        {"brand": "Ünï", "code": "x", "price": 1.5, "stock": 3, "sold": True},
        {"brand": "", "code": b"\xff", "stock": 0, "sold": False},
    ]
    (problem,) = attribute_problems(found[1] or {})
    assert problem.field == "attributes.code"


def test_text_that_is_not_utf_8_is_of_its_row_alone(tmp_path: Path) -> None:
    """In a column of text and in one of lists, with the rows around it as they are."""
    bad = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), bad)
    path = parquet(tmp_path / "a.parquet", brand=bad, tags=lists)
    found = read(path, "brand", "tags")
    assert [found[0], found[2]] == [{"brand": n, "tags": [n]} for n in "ac"]
    fields = [problem.field for problem in attribute_problems(found[1] or {})]
    assert fields == ["attributes.brand", "attributes.tags"]


@pytest.mark.parametrize(
    ("column", "names", "message"),
    [
        (pa.array([1, 2, 3]), ("missing",), "has no 'missing' (it has product_id, vector, column)"),
        (pa.array([{"a": 1}] * 3), ("column",), "'column' is of type struct<a: int64>; attributes"),
        (pa.array([[1], [2], [3]]), ("column",), "'column' is of type list<"),
        (pa.array([b"a"] * 3), ("column",), "'column' is of type binary"),
        (pa.array([1, 2, 3]), ("vector",), "'vector' has the ids or the vectors"),
    ],
)
def test_a_column_that_cannot_be_attributes_is_refused(
    tmp_path: Path, column: Any, names: tuple[str, ...], message: str
) -> None:
    """Before a row is read, by a line that says why."""
    path = parquet(tmp_path / "a.parquet", column=column)
    with pytest.raises(FileError) as refused:
        open_embeddings(path, Columns(attributes=names))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "has no 'price'"),
        ({"price": np.ones(3)}, "has 3 of 'price' and 2 ids"),
        ({"price": np.ones((2, 2))}, "is an array of float64 with shape (2, 2)"),
        ({"price": np.ones(2, np.complex128)}, "is an array of complex128"),
    ],
)
def test_an_array_that_cannot_be_attributes_is_refused(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    """Of another type, shape or length, or none at all."""
    ids, vectors = np.array(["a", "b"]), np.ones((2, 2), np.float32)
    np.savez(tmp_path / "a.npz", product_ids=ids, vectors=vectors, **more)
    with pytest.raises(FileError) as refused:
        open_embeddings(tmp_path / "a.npz", Columns(attributes=("price",)))
    assert message in str(refused.value)


def test_a_name_that_no_line_has_is_told(tmp_path: Path) -> None:
    """It is most likely misspelled, and no row is refused for it."""
    path = as_lines(tmp_path / "a.jsonl.gz")
    with open_embeddings(path, Columns(attributes=("stock", "sotck"))) as reader:
        assert sum(len(batch.rows) for batch in reader.batches(10)) == 3
        assert reader.notes == ["no row has 'sotck'"]


def test_names_are_checked() -> None:
    """Each once, with spaces around the commas; a name that no attribute may have is refused."""
    assert parse_attributes("a, b,a") == ("a", "b")
    assert parse_attributes("") == ()
    for text, message in (
        ("a,,b", "'' is no name"),
        ("a b", "'a b' is no name"),
        (",".join(f"n{n}" for n in range(65)), "65 names, the most is 64"),
    ):
        with pytest.raises(FileError, match=message):
            parse_attributes(text)
