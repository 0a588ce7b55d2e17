"""Reads embeddings from the two arrays of an .npz file. Nothing in it is ever unpickled.

The arrays are read as streams, since numpy would load each of them whole; numpy parses the headers.
"""

import io
import tokenize
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from core.embedding_files.columns import Columns, check_attributes
from core.embedding_files.file_input import FileInput, expansion_problem
from core.embedding_files.rows import Batch, EmbeddingReader, as_float32, batch_of, decoded
from core.errors import FileError
from core.settings import Files

_HEADER_BYTES_MAX: Final = 65_536
"""numpy takes headers of up to 10,000 characters."""
_HEADER_FAULTS: Final = (
    *(ValueError, SyntaxError, TypeError, RecursionError, MemoryError),
    tokenize.TokenError,  # of numpy's second attempt, as Python 2 wrote headers
)
_MEMBERS_MAX: Final = 1000
_ROW_BYTES_MAX: Final = 1024 * 1024
"""An id has up to 512 bytes, and a vector up to 4,096 numbers."""
_FORTRAN_BYTES_MAX: Final = 1024**3
"""An array in Fortran order has no contiguous rows, so it is read whole."""
_ENCRYPTED: Final = 0x1
_BOUNDED: Final = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""What numpy writes. zipfile decodes the other methods a block at a time, however large it gets."""
_MATRIX_DIMENSIONS: Final = 2
_ELSEWHERE: Final = (
    ("[Content_Types].xml", "an Office document"),
    ("/data.pkl", "a PyTorch file"),
    ("META-INF/", "a Java archive"),
)


class _Array(msgspec.Struct, frozen=True):
    """One array, described by its header."""

    member: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int
    """Offset of its numbers in the member."""


class NpzReader(EmbeddingReader):
    """Reads one .npz file."""

    unit = "rows"

    def __init__(self, file: BinaryIO, source: FileInput, columns: Columns, limits: Files) -> None:
        super().__init__(source)
        self._file = file
        self._limits = limits
        self._zip = zipfile.ZipFile(file)
        members = self._zip.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        self._check_archive([member.filename for member in members])
        ids, vectors = columns.choose(names, self.name)
        self._ids = self._array(ids, members[names.index(ids)])
        self._vectors = self._array(vectors, members[names.index(vectors)])
        self._check(ids, vectors)
        check_attributes(self.name, columns.attributes, names)
        self._attributes = {
            name: self._attribute(name, members[names.index(name)]) for name in columns.attributes
        }
        self.units = self._ids.shape[0]

    def _check_archive(self, names: list[str]) -> None:
        if len(names) > _MEMBERS_MAX:
            raise FileError(f"{self.name}: has {len(names):,} members, and no array file does")
        for part, words in _ELSEWHERE:
            if any(part in name for name in names):
                raise FileError(f"{self.name}: is {words}, not an .npz of numpy")
        if not names:
            raise FileError(f"{self.name}: is an .npz without any array")

    def _array(self, name: str, member: zipfile.ZipInfo) -> _Array:
        if member.flag_bits & _ENCRYPTED:
            raise FileError(f"{self.name}: {name!r} is encrypted")
        if member.compress_type not in _BOUNDED:
            raise FileError(
                f"{self.name}: {name!r} is compressed by another method than numpy's: save it with "
                "numpy's savez or savez_compressed"
            )
        if not member.file_size:
            raise FileError(f"{self.name}: {name!r} is empty, where an .npy array should be")
        problem = expansion_problem(member.compress_size, member.file_size, self._limits)
        if problem:
            raise FileError(f"{self.name}: {name!r} {problem}")
        with self._zip.open(member) as stream:
            head = io.BytesIO(stream.read(_HEADER_BYTES_MAX))
        if not head.getvalue().startswith(b"\x93NUMPY"):
            raise FileError(f"{self.name}: {name!r} is no .npy array")
        try:
            version = npy.read_magic(head)
            read_header = (
                npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(head)
        except _HEADER_FAULTS as error:
            raise FileError(f"{self.name}: the header of {name!r} is damaged") from error
        return _Array(member.filename, shape, fortran, dtype, head.tell())

    def _check(self, ids: str, vectors: str) -> None:
        """Raises: FileError: an array is of another type, shape or length than it should be."""
        for name, array in ((ids, self._ids), (vectors, self._vectors)):
            if array.dtype.hasobject:
                raise FileError(
                    f"{self.name}: {name!r} holds Python objects, which are never read: save it "
                    f"as np.asarray({name}, dtype={'str' if name == ids else 'np.float32'})"
                )
        self._check_type(ids, self._ids, "USiu", 1, "ids are text or integers in one dimension")
        if self._ids.dtype.kind in "iu":
            self.notes.append(f"{ids!r} holds integers ({self._ids.dtype}), stored as text")
        wanted = "vectors are numbers in two dimensions, one row a product"
        self._check_type(vectors, self._vectors, "fiu", _MATRIX_DIMENSIONS, wanted)
        if self._ids.shape[0] != self._vectors.shape[0]:
            counts = f"{self._ids.shape[0]:,} ids and {self._vectors.shape[0]:,} vectors"
            raise FileError(f"{self.name}: has {counts}; there must be as many of both")
        for name, array in ((ids, self._ids), (vectors, self._vectors)):
            self._check_size(name, array)

    def _attribute(self, name: str, member: zipfile.ZipInfo) -> _Array:
        array = self._array(name, member)
        wanted = "attributes are text, numbers or booleans in one dimension"
        self._check_type(name, array, "USiufb", 1, wanted)
        if array.shape != self._ids.shape:
            counts = f"{array.shape[0]:,} of {name!r} and {self._ids.shape[0]:,} ids"
            raise FileError(f"{self.name}: has {counts}; there must be as many of both")
        self._check_size(name, array)
        return array

    def _check_type(
        self, name: str, array: _Array, kinds: str, dimensions: int, wanted: str
    ) -> None:
        shape, dtype = array.shape, array.dtype
        if dtype.kind not in kinds or len(shape) != dimensions or not dtype.itemsize:
            raise FileError(
                f"{self.name}: {name!r} is an array of {dtype} with shape {shape}; {wanted}"
            )

    def _check_size(self, name: str, array: _Array) -> None:
        row_bytes = _row_bytes(array)
        size, have = row_bytes * array.shape[0], self._zip.getinfo(array.member).file_size
        if size != have - array.start:
            raise FileError(
                f"{self.name}: {name!r} is damaged: it has {have - array.start:,} bytes of "
                f"numbers, and its shape {array.shape} takes {size:,}"
            )
        if row_bytes > _ROW_BYTES_MAX:
            raise FileError(
                f"{self.name}: a row of {name!r} takes {row_bytes:,} bytes, over the limit of "
                f"{_ROW_BYTES_MAX:,}"
            )
        if array.fortran and len(array.shape) == _MATRIX_DIMENSIONS and size > _FORTRAN_BYTES_MAX:
            raise FileError(
                f"{self.name}: {name!r} is {size:,} bytes in Fortran order: save it as "
                f"np.ascontiguousarray({name})"
            )

    def _batches(self, rows_max: int) -> Iterator[Batch]:
        number = 1
        ids, vectors = self._blocks(self._ids, rows_max), self._blocks(self._vectors, rows_max)
        others = [self._blocks(array, rows_max) for array in self._attributes.values()]
        for some_ids, some_vectors, *some in zip(ids, vectors, *others, strict=True):
            texts = [decoded(i) if isinstance(i, bytes) else str(i) for i in some_ids.tolist()]
            attributes = dict(zip(self._attributes, map(_values, some), strict=True))
            yield batch_of(number, texts, list(as_float32(some_vectors)), attributes)
            number += len(texts)

    def _blocks(self, array: _Array, rows_max: int) -> Iterator[NDArray[Any]]:
        """The array's rows, up to `rows_max` at a time."""
        total, row_bytes = array.shape[0], _row_bytes(array)
        with self._zip.open(array.member) as stream:
            stream.seek(array.start)
            if array.fortran and len(array.shape) == _MATRIX_DIMENSIONS:
                data = self._exactly(stream, total * row_bytes)
                whole = np.frombuffer(data, array.dtype).reshape(array.shape, order="F")
                yield from (whole[at : at + rows_max] for at in range(0, total, rows_max))
                return
            for at in range(0, total, rows_max):
                rows = min(rows_max, total - at)
                data = self._exactly(stream, rows * row_bytes)
                yield np.frombuffer(data, array.dtype).reshape(rows, *array.shape[1:])

    def _exactly(self, stream: Any, size: int) -> bytes:
        data: bytes = stream.read(size)
        if len(data) != size:
            raise FileError(f"{self.name}: ends within an array")
        return data

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()
        self._file.close()


def _row_bytes(array: _Array) -> int:
    return array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=object))


def _values(block: NDArray[Any]) -> list[Any]:
    """The values of an attribute; None for NaN, which is how an array says that there is none."""
    values = block.tolist()
    if block.dtype.kind == "S":
        return [decoded(value) for value in values]
    if block.dtype.kind == "f":
        return [None if value != value else value for value in values]  # noqa: PLR0124 - NaN
    return list(values)


def npy_error(name: str) -> FileError:
    """The error of an .npy file, whatever its name."""
    return FileError(
        f"{name}: is an .npy file, which has one array only: save ids and vectors together, as "
        "np.savez(FILE, product_ids=ids, vectors=vectors) does"
    )
