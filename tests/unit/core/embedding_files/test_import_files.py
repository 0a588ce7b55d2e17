"""Files as people bring them to `k9 import`: read, or refused by what they are in one line."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from core.embedding_files.columns import Columns
from tests.unit.core.embedding_files.vector_files import (
    IDS,
    LISTS,
    NUMBERS,
    PAIRS,
    ids_of,
    npy,
    npz,
    parquet,
    read,
    refusal,
)

CASES = Path(__file__).parents[3] / "cases"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a13_zero_bytes.npz", "is empty"),
        ("a15_object.npz", "'product_ids' holds Python objects, which are never read: save it as"),
        ("a16_empty_member.npz", "'vectors' is empty, where an .npy array should be"),
        ("a16_npy_named.npz", "is an .npy file, which has one array only: save ids and vectors"),
        ("a16_text_member.npz", "'vectors' is no .npy array"),
        ("a5_twice.parquet", "has 'vector' 2 times; rename all but one"),
        ("a7_binary_ids.parquet", "'product_id' is of type binary; ids are text, integers or UUID"),
        ("a23_export.json", "is DynamoDB's JSON, which `k9 migrate --table embeddings` reads"),
        ("a29_js_v3.json", "is DynamoDB's JSON"),
        ("a30_batch_write.json", "is DynamoDB's JSON"),
    ],
)
def test_each_case_is_refused_by_what_it_is(name: str, words: str) -> None:
    """With what to do about it."""
    assert words in refusal(CASES / name)


@pytest.mark.parametrize(
    ("name", "rows", "notes"),
    [
        ("a14_bad.parquet", 17, []),
        ("a14_first_short.parquet", 10, []),
        ("a20.jsonl.gz", 10, []),
        ("a20_utf16.jsonl", 10, []),
        ("a6_uuid.parquet", 10, ["'product_id' holds UUIDs, stored as text"]),
        ("a8_int_ids.parquet", 10, ["'product_id' holds integers (int64), stored as text"]),
    ],
)
def test_each_other_case_is_read(name: str, rows: int, notes: list[str]) -> None:
    """What is converted is said; what the vectors hold is the tables' to check."""
    found, bad, said = read(CASES / name)
    assert (len(found), bad, said) == (rows, [], notes)


TEXT = pa.array(["a", "b", "c"])
FIXED = pa.array(LISTS, pa.list_(pa.float32(), 2))


@pytest.mark.parametrize(
    ("ids", "vectors"),
    [
        (TEXT, pa.array(LISTS, pa.list_(pa.float16()))),
        (TEXT, pa.array(LISTS, pa.list_(pa.float64()))),
        (TEXT, pa.array(LISTS, pa.large_list(pa.float32()))),
        (TEXT, pa.array(LISTS, pa.list_(pa.int64()))),
        (TEXT, FIXED),
        (TEXT, pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), FIXED)),
        (TEXT.cast(pa.large_string()), FIXED),
        (TEXT.dictionary_encode(), FIXED),
    ],
    ids=["half", "double", "large", "integers", "fixed", "tensor", "large text", "categorical"],
)
def test_parquet_of_every_fitting_type(ids: Any, vectors: Any, tmp_path: Path) -> None:
    """Text however it is encoded, and lists of numbers of every width."""
    assert ids_of(parquet(tmp_path, ids, vectors)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (pa.array([1.0, 2.0, 3.0]), "'product_id' is of type double; ids are text, integers"),
        (pa.array([True, False, True]), "is of type bool"),
        (pa.array([None, None, None]), "is of type null"),
        (pa.array([{"x": 1}] * 3), "is of type struct<x: int64>"),
        (pa.array([b"1" * 16] * 3, pa.binary(16)), "is of type fixed_size_binary[16]"),
    ],
)
def test_parquet_ids_of_other_types_are_one_line(ids: Any, words: str, tmp_path: Path) -> None:
    """Not one a row."""
    assert words in refusal(parquet(tmp_path, ids, pa.array(LISTS)))


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (pa.array([[[1.0]], [[2.0]], [[3.0]]]), "one list of numbers a row is read, so flatten it"),
        (pa.array([b"12345678"] * 3), "bytes do not say which numbers they are"),
        (pa.array([b"12345678"] * 3, pa.binary(8)), "is of type fixed_size_binary[8]; bytes do"),
        (pa.array(["[1, 2]"] * 3), "text is not taken apart, so write lists of floats"),
        (pa.array([1.0, 2.0, 3.0]), "'vector' is of type double; lists of numbers are read"),
        (pa.array([[True], [False], [True]]), "lists of numbers are read"),
    ],
)
def test_parquet_vectors_of_other_types_are_one_line(
    vectors: Any, words: str, tmp_path: Path
) -> None:
    """With what would be read instead."""
    assert words in refusal(parquet(tmp_path, pa.array(["a", "b", "c"]), vectors))


@pytest.mark.parametrize(
    ("ids", "vectors", "options"),
    [
        ("id", "embedding", "--id-column id --vector-column embedding"),
        ("ID", "Values", "--id-column ID --vector-column Values"),
        ("__index_level_0__", "emb", "--id-column __index_level_0__ --vector-column emb"),
        ("shop_id", "text_vec_384", "--id-column shop_id --vector-column text_vec_384"),
        ("product_id", "x", "--vector-column NAME"),
    ],
)
def test_other_names_are_suggested_and_taken(
    ids: str, vectors: str, options: str, tmp_path: Path
) -> None:
    """In every format; guessing them would take a row's number for a product."""
    parquet(tmp_path, pa.array(["a", "b", "c"]), pa.array(LISTS), (ids, vectors))
    arrays: dict[str, Any] = {ids: IDS, vectors: NUMBERS}
    npz(tmp_path, **arrays)
    lines = [json.dumps({ids: i, vectors: v}) for i, v in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for name in ("a.parquet", "a.npz", "a.jsonl"):
        line = refusal(tmp_path / name)
        assert line.endswith(f"say which it is by {options}")
        assert f"(it has {ids}, {vectors})" in line
        assert ids_of(tmp_path / name, Columns(ids, vectors)) == ["a", "b", "c"]
        missing = refusal(tmp_path / name, Columns("none", vectors))
        assert missing.startswith(f"has no 'none' (it has {ids}")


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    """The rows around it are read."""
    raw = pa.array([b"a", b"\xff", b"c"])
    ids = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    rows, bad, _ = read(parquet(tmp_path, ids, pa.array(LISTS)))
    assert [row.product_id for row in rows] == ["a", "c"]
    assert [(row.number, row.reason) for row in bad] == [(2, "product_id is not UTF-8")]


@pytest.mark.parametrize(
    ("ids", "notes"),
    [
        (IDS.astype("S"), []),
        (IDS.astype(">U3"), []),
        (np.array([7, 8, 9]), ["'product_ids' holds integers (int64), stored as text"]),
    ],
)
@pytest.mark.parametrize(
    "vectors", [NUMBERS.astype(">f8"), np.asfortranarray(NUMBERS), NUMBERS.astype(np.float16)]
)
def test_npz_of_every_fitting_type(
    ids: Any, notes: list[str], vectors: Any, tmp_path: Path
) -> None:
    """Bytes and wide text of either order, integers; numbers of any width and order."""
    rows, bad, said = read(npz(tmp_path, product_ids=ids, vectors=vectors))
    assert [row.product_id for row in rows] == [str(i) for i in ids.astype("U").tolist()]
    assert [row.vector.tolist() for row in rows] == LISTS
    assert (bad, said) == ([], notes)


@pytest.mark.parametrize(
    ("ids", "vectors", "words"),
    [
        (IDS, NUMBERS[0], "'vectors' is an array of float32 with shape (2,)"),
        (IDS, NUMBERS.astype(complex), "'vectors' is an array of complex128"),
        (IDS, NUMBERS.astype("V4"), "'vectors' is an array of |V4"),
        (IDS.reshape(3, 1), NUMBERS, "'product_ids' is an array of <U1 with shape (3, 1)"),
        (np.array([0.5, 1, 2]), NUMBERS, "'product_ids' is an array of float64"),
        (IDS[:2], NUMBERS, "has 2 ids and 3 vectors; there must be as many of both"),
        (np.array(["x" * 300_000]), NUMBERS[:1], "a row of 'product_ids' takes 1,200,000 bytes"),
        (IDS, NUMBERS.astype(object), "save it as np.asarray(vectors, dtype=np.float32)"),
    ],
)
def test_npz_of_other_types_is_one_line(ids: Any, vectors: Any, words: str, tmp_path: Path) -> None:
    """Which names the array."""
    assert words in refusal(npz(tmp_path, product_ids=ids, vectors=vectors))


_HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,\n"
UNCLOSED = b"\x93NUMPY\x01\x00" + len(_HEADER).to_bytes(2, "little") + _HEADER


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "is an .npz without any array"),
        ([("a.txt", b"x")], "has no 'product_id' and no 'vector' (it has a.txt)"),
        ([("[Content_Types].xml", b"x")], "is an Office document, not an .npz of numpy"),
        ([("archive/data.pkl", b"x")], "is a PyTorch file, not an .npz of numpy"),
        ([("vectors.npy", npy(NUMBERS)), ("vectors.npy", b"")], "has 'vectors' 2 times"),
        ([("vectors.npy", npy(NUMBERS)[:-1])], "'vectors' is damaged: it has 23 bytes"),
        ([("vectors.npy", npy(NUMBERS)[:20])], "the header of 'vectors' is damaged"),
        ([("vectors.npy", b"\x93NUMPY\x09\x00" + b"x" * 90)], "the header of 'vectors' is dam"),
        ([("vectors.npy", UNCLOSED)], "the header of 'vectors' is damaged"),
        ([(f"{n}.npy", b"") for n in range(1001)], "has 1,002 members"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_strange_archives_are_one_line(
    members: list[tuple[str, bytes]], words: str, tmp_path: Path
) -> None:
    """Neither a KeyError nor a TypeError."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        if any(name.endswith(".npy") for name, _ in members):
            archive.writestr("product_ids.npy", npy(IDS))
        for name, data in members:
            archive.writestr(name, data)
    assert words in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"ids": ["a"], "embeddings": [[1]]}, "has no 'product_id' and no 'vector' (it has ids"),
        ({"product_id": ["a"], "vector": [[1]]}, "is an object of columns"),
        ({"product_id": "a", "vector": "AACAPw=="}, "'vector' is text"),
        ({"product_id": "a", "vector": {"0": 1}}, "'vector' is an object"),
        ({"product_id": "a", "vector": [[1, 2]]}, "'vector' is a list of lists"),
        ([[1, 2]], "is an array of arrays"),
        ([{"id": "a", "values": [1]}], "by --id-column id --vector-column values"),
        ({"data": [{"embedding": [1], "index": 0}]}, "it has embedding, index"),
    ],
)
def test_json_of_other_forms_is_one_line(content: Any, words: str, tmp_path: Path) -> None:
    """However many rows it has."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ({"embeddings": [{"product_id": i, "vector": v} for i, v in PAIRS]}, None),
        ({"vectors": [{"id": i, "values": v} for i, v in PAIRS]}, ("id", "values")),
        ({"result": {"points": [{"id": i, "vector": v} for i, v in PAIRS]}}, ("id", "vector")),
        ([{"product_id": i, "vector": v, "x": {}} for i, v in PAIRS], None),
    ],
)
def test_json_of_other_stores_is_read(
    content: Any, columns: tuple[str, str] | None, tmp_path: Path
) -> None:
    """As their exports and requests have it, and as K9's own do."""
    path = tmp_path / "export"
    path.write_text(json.dumps(content, indent=1))
    assert ids_of(path, columns and Columns(*columns)) == ["a", "b", "c"]


def test_integer_ids_of_json_are_said_once(tmp_path: Path) -> None:
    """However many there are."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"product_id": 1, "vector": [1]}\n{"product_id": 2, "vector": [1]}\n')
    rows, _, notes = read(path)
    assert [row.product_id for row in rows] == ["1", "2"]
    assert notes == ["integer ids, as on line 1, are stored as text"]
