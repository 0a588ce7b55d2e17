"""Files as people bring them to `k9 import`: read, or refused by what they are in one line."""

import gzip
import io
import json
import os
import threading
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.settings import Files
from deploy.batches import BadRow, Columns, Row
from deploy.errors import CommandError
from deploy.file_input import FREE_BYTES
from deploy.readers import open_source

CASES = Path(__file__).parents[2] / "cases"
LIMITS = Files()
IDS = np.array(["a", "b", "c"])
NUMBERS = np.arange(6, dtype=np.float32).reshape(3, 2)
LISTS = NUMBERS.tolist()
PAIRS = list(zip("abc", LISTS, strict=True))


def _read(
    path: Path, columns: Columns | None = None, limits: Files = LIMITS
) -> tuple[list[Row], list[BadRow], list[str]]:
    """Good rows, bad rows, and what was converted."""
    with open_source(path, columns or Columns(), limits) as source:
        batches = list(source.batches(2))
        notes = source.notes
    return (
        [row for batch in batches for row in batch.rows],
        [row for batch in batches for row in batch.bad],
        notes,
    )


def _ids(path: Path, columns: Columns | None = None) -> list[str]:
    """The ids of a file that is read whole and without a conversion."""
    rows, bad, notes = _read(path, columns)
    assert (bad, notes) == ([], [])
    assert [row.vector.tolist() for row in rows] == LISTS
    return [row.product_id for row in rows]


def _refusal(path: Path, columns: Columns | None = None, limits: Files = LIMITS) -> str:
    """The one line that a file is refused with, without its name."""
    with pytest.raises(CommandError) as refused:
        _read(path, columns, limits)
    line = str(refused.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert "allow_pickle" not in line
    return line.removeprefix(f"{path}: ")


def _parquet(
    directory: Path, ids: Any, vectors: Any, names: tuple[str, str] = ("product_id", "vector")
) -> Path:
    pq.write_table(pa.table([ids, vectors], names), directory / "a.parquet")
    return directory / "a.parquet"


def _npz(directory: Path, **arrays: Any) -> Path:
    np.savez(directory / "a.npz", **arrays)
    return directory / "a.npz"


def _npy(array: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a13_zero_bytes.npz", "is empty"),
        ("a15_object.npz", "'product_ids' holds Python objects, which are never read: save it as"),
        ("a16_empty_member.npz", "'vectors' is empty, where an .npy array should be"),
        ("a16_npy_named.npz", "is an .npy file, which has one array alone: save ids and vectors"),
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
    assert words in _refusal(CASES / name)


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
    found, bad, said = _read(CASES / name)
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
    assert _ids(_parquet(tmp_path, ids, vectors)) == ["a", "b", "c"]


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
    assert words in _refusal(_parquet(tmp_path, ids, pa.array(LISTS)))


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
    assert words in _refusal(_parquet(tmp_path, pa.array(["a", "b", "c"]), vectors))


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
    _parquet(tmp_path, pa.array(["a", "b", "c"]), pa.array(LISTS), (ids, vectors))
    arrays: dict[str, Any] = {ids: IDS, vectors: NUMBERS}
    _npz(tmp_path, **arrays)
    lines = [json.dumps({ids: i, vectors: v}) for i, v in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for name in ("a.parquet", "a.npz", "a.jsonl"):
        line = _refusal(tmp_path / name)
        assert line.endswith(f"say which it is by {options}")
        assert f"(it has {ids}, {vectors})" in line
        assert _ids(tmp_path / name, Columns(ids, vectors)) == ["a", "b", "c"]
        missing = _refusal(tmp_path / name, Columns("none", vectors))
        assert missing.startswith(f"has no 'none' (it has {ids}")


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    """The rows around it are read."""
    raw = pa.array([b"a", b"\xff", b"c"])
    ids = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    rows, bad, _ = _read(_parquet(tmp_path, ids, pa.array(LISTS)))
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
    rows, bad, said = _read(_npz(tmp_path, product_ids=ids, vectors=vectors))
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
    assert words in _refusal(_npz(tmp_path, product_ids=ids, vectors=vectors))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "is an .npz without any array"),
        ([("a.txt", b"x")], "has no 'product_id' and no 'vector' (it has a.txt)"),
        ([("[Content_Types].xml", b"x")], "is an Office document, not an .npz of numpy"),
        ([("archive/data.pkl", b"x")], "is a PyTorch file, not an .npz of numpy"),
        ([("vectors.npy", _npy(NUMBERS)), ("vectors.npy", b"")], "has 'vectors' 2 times"),
        ([("vectors.npy", _npy(NUMBERS)[:-1])], "'vectors' is damaged: it has 23 bytes"),
        ([("vectors.npy", _npy(NUMBERS)[:20])], "the header of 'vectors' is damaged"),
        ([("vectors.npy", b"\x93NUMPY\x09\x00" + b"x" * 90)], "the header of 'vectors' is dam"),
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
            archive.writestr("product_ids.npy", _npy(IDS))
        for name, data in members:
            archive.writestr(name, data)
    assert words in _refusal(tmp_path / "a.npz")


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
    assert words in _refusal(path)


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ({"embeddings": [{"product_id": i, "vector": v} for i, v in PAIRS]}, None),
        ({"vectors": [{"id": i, "values": v} for i, v in PAIRS]}, ("id", "values")),
        (
            {"result": {"points": [{"id": i, "vector": v} for i, v in PAIRS]}},
            ("id", "vector"),
        ),
        ([{"product_id": i, "vector": v, "x": {}} for i, v in PAIRS], None),
    ],
)
def test_json_of_other_stores_is_read(
    content: Any, columns: tuple[str, str] | None, tmp_path: Path
) -> None:
    """As their exports and requests have it, and as K9's own do."""
    path = tmp_path / "export"
    path.write_text(json.dumps(content, indent=1))
    assert _ids(path, columns and Columns(*columns)) == ["a", "b", "c"]


def test_integer_ids_of_json_are_said_once(tmp_path: Path) -> None:
    """However many there are."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"product_id": 1, "vector": [1]}\n{"product_id": 2, "vector": [1]}\n')
    rows, _, notes = _read(path)
    assert [row.product_id for row in rows] == ["1", "2"]
    assert notes == ["integer ids, as on line 1, are stored as text"]


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["a.parquet", "a.npz", "a.jsonl"])
def test_pipes_and_gzip_of_every_format(form: str, compress: Any, tmp_path: Path) -> None:
    """What must be read at any place goes through a temporary file, up to a limit."""
    _parquet(tmp_path, pa.array(["a", "b", "c"]), pa.array(LISTS))
    _npz(tmp_path, product_ids=IDS, vectors=NUMBERS)
    lines = [json.dumps({"product_id": i, "vector": v}) for i, v in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = compress((tmp_path / form).read_bytes())
    os.mkfifo(tmp_path / "pipe")
    for limits in (LIMITS, Files(file_spool_bytes_max=100)):
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
        writer.start()
        if limits is LIMITS or form == "a.jsonl":
            assert _ids(tmp_path / "pipe") == ["a", "b", "c"]
        else:
            assert "K9_FILE_SPOOL_BYTES_MAX" in _refusal(tmp_path / "pipe", limits=limits)
        writer.join()
    (tmp_path / "named.csv").write_bytes(data)  # the name is not believed
    assert _ids(tmp_path / "named.csv") == ["a", "b", "c"]


def test_a_member_that_expands_hugely_is_refused(tmp_path: Path) -> None:
    """Before any of it is decoded, by the name of the limit."""
    rows = FREE_BYTES // 4096 + 1
    vectors = np.zeros((rows, 1024), np.float32)
    np.savez_compressed(tmp_path / "a.npz", product_ids=np.arange(rows), vectors=vectors)
    assert "'vectors' expands to more than 200 times" in _refusal(tmp_path / "a.npz")
    limits = Files(file_expansion_max=2000)
    with open_source(tmp_path / "a.npz", Columns(), limits) as source:
        assert source.units == rows


@pytest.mark.parametrize("form", ["list", "fixed"])
def test_columns_that_expand_hugely_are_refused(form: str, tmp_path: Path) -> None:
    """Runs of one number take next to nothing in a file, and all their room in memory."""
    rows = FREE_BYTES // 8192 + 1
    numbers = pa.array(np.zeros(rows * 1024, np.float32))
    fixed = pa.FixedSizeListArray.from_arrays(numbers, 1024)
    vectors = fixed.cast(pa.list_(pa.float32())) if form == "list" else fixed
    path = _parquet(tmp_path, pa.array([uuid.UUID(int=n).hex for n in range(rows)]), vectors)
    assert path.stat().st_size < FREE_BYTES // 200
    assert "K9_FILE_EXPANSION_MAX" in _refusal(path)


@pytest.mark.parametrize(
    ("form", "turns"), [("a.parquet", 20), ("fixed.parquet", 150), ("a.npz", 300), ("a.gz", 300)]
)
def test_damaged_files_are_one_line_or_rows(form: str, turns: int, tmp_path: Path) -> None:
    """Wherever a byte is wrong or the end is missing; no error of a library comes out."""
    fixed = pa.array(LISTS, pa.list_(pa.float32(), 2))
    _parquet(tmp_path, pa.array(["a", "b", "c"]), fixed).rename(tmp_path / "fixed.parquet")
    _parquet(tmp_path, pa.array(["a", "b", "c"]), pa.array(LISTS))
    np.savez_compressed(tmp_path / "a.npz", product_ids=IDS, vectors=NUMBERS)
    with gzip.open(tmp_path / "a.gz", "wt") as file:
        file.write('{"product_id": "a", "vector": [1, 2]}\n' * 20)
    data = (tmp_path / form).read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for turn in range(turns):
        damaged = bytearray(data)
        if turn % 3:
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[int(rng.integers(1, len(data))) :]
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            _read(tmp_path / "damaged")
        except CommandError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most are refused, not all
            refused += 1
    assert refused > turns / 3
