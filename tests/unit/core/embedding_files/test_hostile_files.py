"""Files of vectors that are damaged, expand hugely, or come through a pipe."""

import gzip
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

from core.embedding_files import parquet as parquet_module
from core.embedding_files.columns import Columns
from core.embedding_files.file_input import FREE_BYTES
from core.embedding_files.readers import open_embeddings
from core.errors import FileError
from core.settings import Files
from tests.unit.core.embedding_files.vector_files import (
    IDS,
    LIMITS,
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


@pytest.mark.parametrize("compress", [lambda data: data, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["a.parquet", "a.npz", "a.jsonl"])
def test_pipes_and_gzip_of_every_format(form: str, compress: Any, tmp_path: Path) -> None:
    """What must be read at any place goes through a temporary file, up to a limit."""
    parquet(tmp_path, pa.array(["a", "b", "c"]), pa.array(LISTS))
    npz(tmp_path, product_ids=IDS, vectors=NUMBERS)
    lines = [json.dumps({"product_id": i, "vector": v}) for i, v in PAIRS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = compress((tmp_path / form).read_bytes())
    os.mkfifo(tmp_path / "pipe")
    for limits in (LIMITS, Files(file_spool_bytes_max=100)):
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
        writer.start()
        if limits is LIMITS or form == "a.jsonl":
            assert ids_of(tmp_path / "pipe") == ["a", "b", "c"]
        else:
            assert "K9_FILE_SPOOL_BYTES_MAX" in refusal(tmp_path / "pipe", limits=limits)
        writer.join()
    (tmp_path / "named.csv").write_bytes(data)  # the name is not believed
    assert ids_of(tmp_path / "named.csv") == ["a", "b", "c"]


def test_a_member_that_expands_hugely_is_refused(tmp_path: Path) -> None:
    """Before any of it is decoded, by the name of the limit."""
    rows = FREE_BYTES // 4096 + 1
    vectors = np.zeros((rows, 1024), np.float32)
    np.savez_compressed(tmp_path / "a.npz", product_ids=np.arange(rows), vectors=vectors)
    assert "'vectors' expands to more than 200 times" in refusal(tmp_path / "a.npz")
    limits = Files(file_expansion_max=2000)
    with open_embeddings(tmp_path / "a.npz", Columns(), limits) as source:
        assert source.units == rows


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["vectors", "product_ids"])
def test_members_compressed_otherwise_than_numpy_does_are_refused(
    method: int, name: str, tmp_path: Path
) -> None:
    """Before any of it is decoded: their decoders give all that a block holds, of any size."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for each, array in (("product_ids", IDS), ("vectors", NUMBERS)):
            kind = method if each == name else zipfile.ZIP_DEFLATED
            archive.writestr(f"{each}.npy", npy(array), kind)
    line = refusal(tmp_path / "a.npz")
    assert f"{name!r} is compressed by another method than numpy's" in line
    assert line.endswith("save it with numpy's savez or savez_compressed")


_WIDE = pa.array([0.5] * 200_000, pa.float32())


@pytest.mark.parametrize("column", ["product_id", "vector", "fixed", "texts"])
@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_parquet_over_the_limit_are_refused(
    column: str,
    fixed: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    """As those of other formats are, whichever column is too wide; one that is not read may be."""
    lists = pa.array(LISTS, pa.list_(pa.float32(), 2) if fixed else pa.list_(pa.float32()))
    table = {
        "product_id": pa.array(["a", "b", "c"]),
        "vector": lists,
        "texts": pa.array([["x"]] * 3),
        "other": pa.array(["x" * 2**21] * 3),
    }
    attributes = Columns(attributes=("texts",))
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert ids_of(tmp_path / "a.parquet", attributes) == ["a", "b", "c"]
    table |= {
        "product_id": {"product_id": pa.array([f"{n}" * 2**21 for n in range(3)])},
        "vector": {"vector": pa.array([_WIDE.to_pylist()] * 3, pa.list_(pa.float32()))},
        "fixed": {"vector": pa.array([_WIDE.to_pylist()] * 3, pa.list_(pa.float32(), 200_000))},
        "texts": {"texts": pa.array([["x"] * 200_000] * 3)},
    }[column]
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    line = refusal(tmp_path / "a.parquet", attributes)
    assert line.startswith("its rows take ")
    assert line.endswith("bytes on average, over the limit of 1,048,576")


def test_columns_with_a_dot_in_their_name_are_counted(tmp_path: Path) -> None:
    """As a whole name, and as part of no other one."""
    wide = pa.array([_WIDE.to_pylist()] * 3, pa.list_(pa.float32()))
    columns = Columns("a.id", "a.b")
    table = {"a.id": pa.array(["a", "b", "c"]), "a": wide, "a.b": pa.array(LISTS), "b": wide}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert ids_of(tmp_path / "a.parquet", columns) == ["a", "b", "c"]
    pq.write_table(pa.table(table | {"a.b": wide}), tmp_path / "a.parquet")
    assert "its rows take" in refusal(tmp_path / "a.parquet", columns)


@pytest.mark.parametrize("size", [None, 4096])
def test_wide_rows_of_parquet_come_a_few_at_a_time(
    size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as fit, where narrow rows come as many at a time as are asked for."""
    monkeypatch.setattr(parquet_module, "_BATCH_BYTES", 200_000)
    wide = pa.list_(pa.float32()) if size is None else pa.list_(pa.float32(), size)
    for length, most in ((2, 20), (4096, 6)):
        if size is None or size == length:
            vectors = pa.array([np.full(length, n, np.float32) for n in range(20)], wide)
            parquet(tmp_path, pa.array([str(n) for n in range(20)]), vectors)
            with open_embeddings(tmp_path / "a.parquet") as source:
                batches = list(source.batches(1000))
            rows = [row for batch in batches for row in batch.rows]
            assert [int(row.product_id) for row in rows] == list(range(20))
            assert max(len(batch.rows) for batch in batches) == most


@pytest.mark.parametrize("form", ["list", "fixed"])
def test_columns_that_expand_hugely_are_refused(form: str, tmp_path: Path) -> None:
    """Runs of one number take next to nothing in a file, and all their room in memory."""
    rows = FREE_BYTES // 8192 + 1
    numbers = pa.array(np.zeros(rows * 1024, np.float32))
    fixed = pa.FixedSizeListArray.from_arrays(numbers, 1024)
    vectors = fixed.cast(pa.list_(pa.float32())) if form == "list" else fixed
    path = parquet(tmp_path, pa.array([uuid.UUID(int=n).hex for n in range(rows)]), vectors)
    assert path.stat().st_size < FREE_BYTES // 200
    assert "K9_FILE_EXPANSION_MAX" in refusal(path)


@pytest.mark.parametrize(
    ("form", "turns"), [("a.parquet", 20), ("fixed.parquet", 60), ("a.npz", 300), ("a.gz", 300)]
)
def test_damaged_files_are_one_line_or_rows(form: str, turns: int, tmp_path: Path) -> None:
    """Wherever a byte is wrong or the end is missing; no error of a library comes out."""
    fixed = pa.array(LISTS, pa.list_(pa.float32(), 2))
    parquet(tmp_path, pa.array(["a", "b", "c"]), fixed).rename(tmp_path / "fixed.parquet")
    parquet(tmp_path, pa.array(["a", "b", "c"]), pa.array(LISTS))
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
            read(tmp_path / "damaged")
        except FileError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most are refused, not all
            refused += 1
    assert refused > turns / 3
