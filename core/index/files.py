"""Writing the files of a version. The same rows give the same bytes: no file contains a time."""

import zipfile
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from core.files import size_and_digest
from core.index.manifest import FileInfo
from core.vectors.arrays import Floats
from core.vectors.matrix import Matrix

IDS: Final = "ids"
VECTORS: Final = "vectors.npy"
ORDER: Final = "order.npy"
MEMBER_STARTS: Final = "member_starts.npy"
MEMBER_ROWS: Final = "member_rows.npy"
MEMBER_RADII: Final = "member_radii.npy"
INDEX: Final = "index.faiss"
COLUMNS: Final = "attributes.columns"
"""In versions with attributes alone; `core.attributes.column_format` describes it."""
NEIGHBORS: Final = "neighbors.npy"
SCORES: Final = "scores.npy"
PARQUET: Final = "matrix.parquet"
NPZ: Final = "matrix.npz"
REPORT: Final = "report.json"

IDS_MAGIC: Final = b"K9IDS\x00\x00\x01"
_PARQUET_ROWS: Final = 131_072
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)


def file_info(path: Path) -> FileInfo:
    """Checksum and size of a file on disk."""
    size, digest = size_and_digest(path)
    return FileInfo(digest, size)


def write_ids(path: Path, ids: list[bytes]) -> None:
    """The ids, sorted: a magic number, their count, where each begins, and their bytes.

    All numbers are 64-bit little-endian; the offsets are one more than the ids.
    """
    with path.open("wb") as file:
        file.write(IDS_MAGIC)
        file.write(np.array([len(ids)], dtype="<u8").tobytes())
        file.write(np.cumsum([0, *map(len, ids)], dtype="<u8").tobytes())
        file.write(b"".join(ids))


def create_vectors(path: Path, rows: int, dimension: int) -> Floats:
    """A float32 `.npy` file (rows, dimension) to be filled in place, mapped for writing."""
    mapped: Floats = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(rows, dimension)
    )
    return mapped


def write_array(path: Path, values: NDArray[Any]) -> None:
    """An array as `.npy`."""
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def write_parquet(path: Path, ids: list[bytes], matrix: Matrix) -> None:
    """The matrix for people: product_id, rank from 1, neighbor_id, score; by id and rank."""
    import pyarrow as pa  # noqa: PLC0415 - half a second of import that serving does not need
    import pyarrow.parquet as pq  # noqa: PLC0415

    names = pa.array([product_id.decode() for product_id in ids], type=pa.string())
    schema = pa.schema(
        [
            ("product_id", pa.string()),
            ("rank", pa.int32()),
            ("neighbor_id", pa.string()),
            ("score", pa.float32()),
        ]
    )
    n, k = matrix.neighbors.shape
    step = max(1, _PARQUET_ROWS // max(1, k))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, n, step):
            neighbors = matrix.neighbors[start : start + step]
            row, rank = np.nonzero(neighbors >= 0)
            columns = [
                names.take(pa.array(row + start)),
                pa.array((rank + 1).astype(np.int32)),
                names.take(pa.array(neighbors[row, rank])),
                pa.array(matrix.scores[start : start + step][row, rank]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def write_npz(path: Path, ids: list[bytes], matrix: Matrix) -> None:
    """The matrix for programs: what `scipy.sparse.load_npz` reads as CSR, and the ids.

    `ids` are all ids in one run of bytes and `id_offsets` where each begins. numpy's own writer
    puts the time of day into the archive, this one does not.
    """
    n = matrix.neighbors.shape[0]
    present = matrix.neighbors >= 0
    members: dict[str, NDArray[Any]] = {
        "indices": matrix.neighbors[present],
        "indptr": np.concatenate(([0], np.cumsum(present.sum(axis=1)))).astype(np.int64),
        "format": np.array(b"csr"),
        "shape": np.array([n, n], dtype=np.int64),
        "data": matrix.scores[present],
        "ids": np.frombuffer(b"".join(ids), dtype=np.uint8),
        "id_offsets": np.cumsum([0, *map(len, ids)], dtype=np.int64),
    }
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_STORED) as archive:
        for name, values in members.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_ZIP_TIME)
            with archive.open(entry, "w", force_zip64=True) as member:
                np.save(member, values, allow_pickle=False)


def write_index(path: Path, index: Any) -> None:
    """A FAISS index."""
    faiss.write_index(index, str(path))
