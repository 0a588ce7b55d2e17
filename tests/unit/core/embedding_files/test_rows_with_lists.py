"""Rows of JSON that have lists of objects themselves, under the names of lists of rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.embedding_files import json_scanner
from core.embedding_files.columns import Columns
from core.embedding_files.json_embeddings import LINE_BYTES_MAX
from tests.unit.core.embedding_files.vector_files import read, refusal

_LISTS = ["items", "data", "rows", "vectors", "embeddings", "points", "objects", "Items"]
_FOREIGN = [{"product_id": "x", "vector": [3, 4]}]


def _lines(directory: Path, rows: list[Any]) -> Path:
    path = directory / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _ids(path: Path, columns: Columns | None = None) -> list[str]:
    rows, bad, _ = read(path, columns)
    assert bad == []
    return [row.product_id for row in rows]


@pytest.mark.parametrize("block_bytes", [7, json_scanner.BLOCK_BYTES])
@pytest.mark.parametrize("inner", [[], _FOREIGN, [{}]], ids=["empty", "rows", "objects"])
@pytest.mark.parametrize("name", _LISTS)
def test_a_row_with_a_list_of_objects_is_a_row(
    name: str, inner: Any, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first line or on every one, before the id or after it, as lines or indented."""
    monkeypatch.setattr(json_scanner, "BLOCK_BYTES", block_bytes)
    rows: list[dict[str, Any]] = [{"product_id": i, "vector": [1, 2]} for i in "abc"]
    after = [row | {name: inner} for row in rows]
    before = [{name: inner} | row for row in rows]
    for every in (after, before, [before[0], *rows[1:]], [rows[0], *after[1:]]):
        assert _ids(_lines(tmp_path, every)) == ["a", "b", "c"]
        (tmp_path / "a.json").write_text("\n".join(json.dumps(row, indent=1) for row in every))
        assert _ids(tmp_path / "a.json") == ["a", "b", "c"]


def test_a_row_with_a_result_is_a_row(tmp_path: Path) -> None:
    """A `result` is read for lists of rows only where the object is no row."""
    row = {"product_id": "a", "vector": [1, 2], "result": {"points": _FOREIGN}}
    assert _ids(_lines(tmp_path, [row, row | {"product_id": "b"}])) == ["a", "b"]


@pytest.mark.parametrize("escaped", [False, True])
def test_the_chosen_id_makes_a_row(escaped: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """However its name is written."""
    text = json.dumps({"items": [{"é": "x"}], "é": "a", "v": [1]}, ensure_ascii=escaped)
    path = tmp_path / "a.jsonl"
    path.write_text(text, encoding="utf-8")
    assert _ids(path, Columns("é", "v")) == ["a"]


def test_a_row_without_a_vector_is_bad_and_takes_no_other_along(tmp_path: Path) -> None:
    """Nor does its empty list make the name of the other rows' vectors wrong."""
    good = [{"product_id": i, "vector": [1, 2]} for i in "bc"]
    rows, bad, _ = read(_lines(tmp_path, [{"product_id": "a", "vectors": []}, *good]))
    assert [row.product_id for row in rows] == ["b", "c"]
    assert [row.number for row in bad] == [1]
    rows, bad, _ = read(_lines(tmp_path, [{"product_id": "a", "items": _FOREIGN}, *good]))
    assert [row.product_id for row in rows] == ["b", "c"]
    assert [row.number for row in bad] == [1]


def test_rows_whose_id_has_another_name_are_refused(tmp_path: Path) -> None:
    """An empty list beside a vector has no rows that could be meant."""
    rows = [{"id": "a", "items": [], "vector": [1, 2]}] * 2
    assert "by --id-column id" in refusal(_lines(tmp_path, rows))
    assert _ids(_lines(tmp_path, [{"vector": [1], "items": _FOREIGN}])) == ["x"]
    assert _ids(_lines(tmp_path, [{"items": [], "next": None}, {"items": _FOREIGN}])) == ["x"]


def test_a_broken_row_with_a_list_is_bad(tmp_path: Path) -> None:
    """Cut short after its id, or too long."""
    good = json.dumps({"product_id": "b", "vector": [1, 2]})
    long = json.dumps({"items": [], "product_id": "a", "x": [0] * LINE_BYTES_MAX})
    for broken in ('{"items": [{}], "product_id": "a", "vector": [1, 2', long):
        (tmp_path / "a.jsonl").write_text(f"{broken}\n{good}\n")
        rows, bad, _ = read(tmp_path / "a.jsonl")
        assert [row.product_id for row in rows] == ["b"]
        assert [row.number for row in bad] == [1]


@pytest.mark.parametrize("after", [{}, {"product_id": "late"}])
def test_a_document_longer_than_a_row_is_read(after: Any, tmp_path: Path) -> None:
    """As a stream; an id behind more than a row takes is said."""
    many = [{"product_id": f"{n:0100}", "vector": [n]} for n in range(LINE_BYTES_MAX // 40)]
    rows, bad, _ = read(_lines(tmp_path, [{"items": many} | after]))
    assert len(rows) == len(many)
    assert [row.reason for row in bad] == [
        f"has an id after {LINE_BYTES_MAX} bytes: its lists were read as rows" for _ in after
    ]
