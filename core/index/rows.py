"""The pulled rows of a build on disk: the worker writes them, its build process reads them.

Memory use is constant: vectors, ids and one fixed-size record per row go to three files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from core.errors import Corrupt
from core.models import Embedding
from core.vectors.arrays import Floats, Ints

VECTORS: Final = "vectors.f32"
_IDS: Final = "ids.bin"
_RECORDS: Final = "records.bin"
_RECORD: Final = np.dtype([("id_bytes", "<u4"), ("slot", "<i8")])
"""For each row in order of arrival: the length of its id, and the slot of its vector or a code."""
_TOMBSTONE: Final = -1
_WRONG_DIMENSION: Final = -2
_BUFFER_BYTES: Final = 1 << 16
"""The vectors of a page are longer, and so are written without another copy."""


class Rows(msgspec.Struct, frozen=True):
    """The latest row of each product, sorted by the bytes of its id."""

    ids: list[bytes]
    """UTF-8, ascending, of the rows that have a vector."""
    slots: Ints
    """int64 (n,): the slot in `vectors` of each id."""
    vectors: Floats
    """float32 (slots, d), mapped from the file, in the order the rows came."""
    tombstones: int
    """Products whose latest row is a tombstone."""
    wrong_dimension: list[bytes]
    """Ids, ascending, of the products whose latest row has another dimension."""


class RowWriter:
    """Appends pages of rows to files in a directory, which it creates if missing."""

    def __init__(self, directory: Path, dimension: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._bytes = dimension * 4
        self._vectors, self._ids, self._records = (
            (directory / name).open("wb", buffering=_BUFFER_BYTES)
            for name in (VECTORS, _IDS, _RECORDS)
        )
        self._slots = 0

    def append(self, embeddings: Sequence[Embedding]) -> None:
        """Adds one page. A later row of a product replaces its earlier one."""
        size = self._bytes
        vectors = [
            row.vector
            for row in embeddings
            if row.deleted_at is None and row.vector is not None and len(row.vector) == size
        ]
        ids = [row.product_id.encode() for row in embeddings]
        records = np.empty(len(embeddings), dtype=_RECORD)
        records["id_bytes"] = list(map(len, ids))
        slots = range(self._slots, self._slots + len(vectors))
        if len(vectors) == len(embeddings):
            records["slot"] = slots
        else:
            following = iter(slots)
            records["slot"] = [self._slot(row, following) for row in embeddings]
        self._slots += len(vectors)
        self._vectors.write(b"".join(vectors))
        self._ids.write(b"".join(ids))
        self._records.write(records.tobytes())

    def _slot(self, row: Embedding, following: Iterator[int]) -> int:
        """The next slot, or the code of a row without a vector to keep."""
        if row.deleted_at is not None:
            return _TOMBSTONE
        if row.vector is None or len(row.vector) != self._bytes:
            return _WRONG_DIMENSION
        return next(following)

    def close(self) -> None:
        """Flushes and closes the files."""
        for file in (self._vectors, self._ids, self._records):
            file.close()


def read_rows(directory: Path, dimension: int) -> Rows:
    """The latest row of each product; a tombstone after a row removes it. Copies no vector.

    Raises:
        Corrupt: the files do not match, as when their writer was killed.
    """
    records = np.fromfile(directory / _RECORDS, dtype=_RECORD)
    data = (directory / _IDS).read_bytes()
    slots = records["slot"]
    ends = np.cumsum(records["id_bytes"], dtype=np.int64)
    stored = int((slots >= 0).sum())
    size = (directory / VECTORS).stat().st_size
    if size != stored * dimension * 4 or len(data) != (int(ends[-1]) if ends.size else 0):
        raise Corrupt("the files of the pulled rows do not match: the pull did not finish")
    latest: dict[bytes, int] = {}
    start = 0
    for end, slot in zip(ends.tolist(), slots.tolist(), strict=True):
        latest[data[start:end]] = slot
        start = end
    ids = sorted(product_id for product_id, slot in latest.items() if slot >= 0)
    chosen = np.fromiter((latest[i] for i in ids), dtype=np.int64, count=len(ids))
    vectors: Floats = np.empty((0, dimension), dtype=np.float32)
    if stored:
        mapped = np.memmap(directory / VECTORS, dtype="<f4", mode="r", shape=(stored, dimension))
        vectors = np.asarray(mapped)
    return Rows(
        ids=ids,
        slots=chosen,
        vectors=vectors,
        tombstones=sum(slot == _TOMBSTONE for slot in latest.values()),
        wrong_dimension=sorted(i for i, slot in latest.items() if slot == _WRONG_DIMENSION),
    )
