"""Small files of vectors, made and read by the tests of what `k9 import` takes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.embedding_files.columns import Columns
from core.embedding_files.readers import open_embeddings
from core.embedding_files.rows import Row
from core.errors import FileError
from core.models import BadRow
from core.settings import Files

LIMITS = Files()
IDS = np.array(["a", "b", "c"])
NUMBERS = np.arange(6, dtype=np.float32).reshape(3, 2)
LISTS = NUMBERS.tolist()
PAIRS = list(zip("abc", LISTS, strict=True))


def read(
    path: Path, columns: Columns | None = None, limits: Files = LIMITS
) -> tuple[list[Row], list[BadRow], list[str]]:
    """Good rows, bad rows, and what was converted."""
    with open_embeddings(path, columns or Columns(), limits) as source:
        batches = list(source.batches(2))
        notes = source.notes
    return (
        [row for batch in batches for row in batch.rows],
        [row for batch in batches for row in batch.bad],
        notes,
    )


def ids_of(path: Path, columns: Columns | None = None) -> list[str]:
    """The ids of a file that is read whole and without a conversion."""
    rows, bad, notes = read(path, columns)
    assert (bad, notes) == ([], [])
    assert [row.vector.tolist() for row in rows] == LISTS
    return [row.product_id for row in rows]


def refusal(path: Path, columns: Columns | None = None, limits: Files = LIMITS) -> str:
    """The one line that a file is refused with, without its name."""
    with pytest.raises(FileError) as refused:
        read(path, columns, limits)
    line = str(refused.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert "allow_pickle" not in line
    return line.removeprefix(f"{path}: ")


def parquet(
    directory: Path, ids: Any, vectors: Any, names: tuple[str, str] = ("product_id", "vector")
) -> Path:
    """A Parquet file of two columns."""
    pq.write_table(pa.table([ids, vectors], names), directory / "a.parquet")
    return directory / "a.parquet"


def npz(directory: Path, **arrays: Any) -> Path:
    """An .npz of these arrays."""
    np.savez(directory / "a.npz", **arrays)
    return directory / "a.npz"


def npy(array: Any) -> bytes:
    """An array as numpy writes it."""
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()
