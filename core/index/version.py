"""A version's files, mapped into memory and never changed."""

import mmap
import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from core.attributes.columns import Columns
from core.errors import Corrupt
from core.index import files
from core.index.manifest import Manifest
from core.vectors.arrays import Floats
from core.vectors.copies import Members
from core.vectors.search import Searcher

MAPPED: Final = (
    files.IDS,
    files.VECTORS,
    files.ORDER,
    files.MEMBER_STARTS,
    files.MEMBER_ROWS,
    files.MEMBER_RADII,
    files.INDEX,
    files.NEIGHBORS,
    files.SCORES,
    files.COLUMNS,
)
"""Files that serving maps; the others are for people and programs."""
_LIMIT_FLOOR: Final = 1 << 20
_READERS: Final = 2
"""Files read at a time for their checksums, for which the searches of a start wait. More would gain
nothing: the vectors' takes more than half of the time."""
_READ_LOCK: Final = threading.Lock()
"""FAISS's limits on what it reads are global to the process."""


class IdTable(Sequence[bytes]):
    """The sorted ids of a version, both ways, on a mapped file."""

    def __init__(self, path: Path) -> None:
        """Maps the file.

        Raises:
            Corrupt: when its layout is not what `write_ids` writes.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(self._map)
        head = len(files.IDS_MAGIC) + 8
        self._n = int.from_bytes(view[head - 8 : head], "little") if len(view) >= head else 0
        start = head + 8 * (self._n + 1)
        if bytes(view[: len(files.IDS_MAGIC)]) != files.IDS_MAGIC or len(view) < start:
            raise Corrupt(f"{path.name} is no table of ids")
        self._offsets = view[head:start].cast("Q")
        self._start = start
        if self._offsets[0] != 0 or start + self._offsets[self._n] != len(view):
            raise Corrupt(f"{path.name} is cut short")

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, row: Any) -> Any:
        """The id of a row, as UTF-8. Rows count from 0; slices are not for this."""
        start, offsets = self._start, self._offsets
        return self._map[start + offsets[row] : start + offsets[row + 1]]

    def row_of(self, product_id: str) -> int | None:
        """The row of an id, None where it has none. About log2(n) comparisons."""
        key = product_id.encode()
        row = bisect_left(self, key)
        return row if row < self._n and self[row] == key else None

    def ids_of(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """The ids of rows (any,), in their order."""
        start, offsets, data = self._start, self._offsets, self._map
        return [
            data[start + offsets[row] : start + offsets[row + 1]].decode() for row in rows.tolist()
        ]


class MappedVersion(msgspec.Struct, frozen=True):
    """The files of one version. Safe to use from any number of threads."""

    manifest: Manifest
    ids: IdTable
    searcher: Searcher
    neighbors: NDArray[np.int32]
    """(n, matrix k): the nearest other rows of each row, best first; -1 where there are fewer."""
    scores: Floats
    """(n, matrix k): theirs."""
    columns: Columns | None = None
    """The attributes of the rows; None where none has any."""

    @classmethod
    def open(cls, directory: Path, manifest: Manifest) -> Self:
        """Maps the files of a version; checksums are not read again, sizes are.

        Raises:
            Corrupt: naming a file that is missing, of another size, or of another layout.
        """
        for name in mapped_files(manifest):
            _check_size(directory, name, manifest)
        n, d = manifest.counts.rows, manifest.dimension
        vectors = _map_array(directory / files.VECTORS, (n, d), np.dtype(np.float32))
        index = order = members = None
        if manifest.index.family != "exact":
            positions = manifest.index.positions
            order = _map_array(directory / files.ORDER, (positions,), np.dtype(np.int32))
            index = _read_index(directory / files.INDEX)
            if index.ntotal != positions or index.d != manifest.index.layout.dimension:
                raise Corrupt(
                    f"{files.INDEX} has {index.ntotal} rows, the manifest has {positions}"
                )
            if positions < n:
                members = _map_members(directory, manifest)
        shape = (n, manifest.matrix.k)
        neighbors = _map_array(directory / files.NEIGHBORS, shape, np.dtype(np.int32))
        scores = _map_array(directory / files.SCORES, shape, np.dtype(np.float32))
        ids = IdTable(directory / files.IDS)
        if len(ids) != n:
            raise Corrupt(f"{files.IDS} has {len(ids)} ids, the manifest has {n}")
        searcher = Searcher(vectors, manifest.metric, manifest.index, index, order, members)
        columns = None
        if files.COLUMNS in manifest.files:
            columns = Columns(directory / files.COLUMNS, n)
        return cls(manifest, ids, searcher, neighbors, scores, columns)


def mapped_files(manifest: Manifest) -> tuple[str, ...]:
    """The files of a version that serving needs on its disk."""
    return tuple(name for name in MAPPED if name in manifest.files)


def verify_files(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Compares the checksums of a version's files, all unless named, with the manifest.

    Raises:
        Corrupt: naming the first file that is missing or different.
    """
    chosen = list(manifest.files if names is None else names)
    for name in chosen:
        _check_size(directory, name, manifest)
    with ThreadPoolExecutor(_READERS) as readers:
        infos = readers.map(files.file_info, (directory / name for name in chosen))
        for name, info in zip(chosen, infos, strict=True):
            if info.sha256 != manifest.files[name].sha256:
                raise Corrupt(f"{name} does not have the checksum that the manifest has", name)


def _check_size(directory: Path, name: str, manifest: Manifest) -> None:
    if Path(name).name != name:
        raise Corrupt(f"the manifest names a file outside its directory: {name!r}")
    try:
        size = (directory / name).stat().st_size
    except FileNotFoundError:
        raise Corrupt(f"{name} is missing", name) from None
    expected = manifest.files[name].bytes
    if size != expected:
        raise Corrupt(f"{name} has {size} bytes, the manifest has {expected}", name)


def _map_members(directory: Path, manifest: Manifest) -> Members:
    positions, n = manifest.index.positions, manifest.counts.rows
    starts = _map_array(directory / files.MEMBER_STARTS, (positions + 1,), np.dtype(np.int64))
    rows = _map_array(directory / files.MEMBER_ROWS, (n,), np.dtype(np.int32))
    if not manifest.index.near_copies:
        return Members(starts, rows)
    radii = _map_array(directory / files.MEMBER_RADII, (positions,), np.dtype(np.float32))
    return Members(starts, rows, radii)


def _map_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A plain array over the mapped file: the memmap class costs time at every slice."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Corrupt(f"{path.name} cannot be mapped: {error}") from None
    if mapped.shape != shape or mapped.dtype != dtype or not mapped.flags.c_contiguous:
        raise Corrupt(f"{path.name} is {mapped.dtype} {mapped.shape}, not {dtype} {shape}")
    return np.asarray(mapped)


def _read_index(path: Path) -> Any:
    """The FAISS index, mapped: graphs, codes and inverted lists stay in the file's pages."""
    size = path.stat().st_size
    with _READ_LOCK:
        # No vector in the file can be longer than the file; counts of lists and links neither.
        faiss.set_deserialization_vector_byte_limit(2 * size + _LIMIT_FLOOR)
        faiss.set_deserialization_loop_limit(size)
        try:
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:
            raise Corrupt(f"{path.name} is not an index that this FAISS reads") from None
