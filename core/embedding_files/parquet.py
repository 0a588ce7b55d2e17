"""Reads embeddings from Parquet files. Columns of other types are rejected by their type."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.embedding_files.columns import Columns, check_attributes
from core.embedding_files.file_input import BLOCK_BYTES, FileInput, expansion_problem
from core.embedding_files.rows import Batch, EmbeddingReader, as_float32, batch_of, decoded, text_of
from core.errors import FileError
from core.settings import Files

_WIDEST_BYTES: Final = 8
"""The widest number, decoded: a run of equal values takes almost no space in a file."""
_ROW_BYTES_MAX: Final = 1024 * 1024
"""As in other formats. Of an average row: the metadata does not have the widest one."""
_BATCH_BYTES: Final = 64 * 1024 * 1024
"""Rows that average this much are read at a time, where so many are asked for."""
_SIZES: Final = """
import sys, pyarrow.parquet as pq
metadata = pq.ParquetFile(sys.argv[1]).metadata
columns = [int(number) for number in sys.argv[3:]]
compressed = decoded = widest = 0
for number in range(metadata.num_row_groups):
    group = metadata.row_group(number)
    chunks = [group.column(i) for i in columns]
    size = sum(max(chunk.total_uncompressed_size, chunk.num_values * int(sys.argv[2]))
               for chunk in chunks)
    compressed += sum(chunk.total_compressed_size for chunk in chunks)
    decoded += size
    widest = max(widest, size // max(group.num_rows, 1))
print(compressed, decoded, widest)
"""
"""Prints the size of the columns in bytes, compressed and in memory, and that of an average row of
the row group with the widest rows.

It runs in a process of its own, since pyarrow aborts the process on a damaged column footer."""


class ParquetReader(EmbeddingReader):
    """Reads one Parquet file."""

    unit = "rows"

    def __init__(self, file: BinaryIO, source: FileInput, columns: Columns, limits: Files) -> None:
        super().__init__(source)
        self._file = file
        self._dictionaries: list[str] = []
        with self._open() as opened:
            schema = opened.schema_arrow
            self._columns = columns
            self._ids, self._vectors = columns.choose(schema.names, self.name)
            self._check_ids(schema.field(self._ids).type)
            self._check_vectors(schema.field(self._vectors).type)
            self._attributes = columns.attributes
            check_attributes(self.name, self._attributes, schema.names)
            leaves = [opened.schema.column(n).path for n in range(len(opened.schema))]
            roots = [_root(leaf, schema.names) for leaf in leaves]
            read = {self._ids, self._vectors, *self._attributes}
            numbers = [n for n, root in enumerate(roots) if root in read]
            for name in self._attributes:
                if self._check_attribute(name, schema.field(name).type):
                    # Repeated texts are in memory once, those of lists too.
                    self._dictionaries += [
                        leaf for leaf, root in zip(leaves, roots, strict=True) if root == name
                    ]
            self.units = opened.metadata.num_rows
        self._rows_max = self._check_sizes(numbers, limits)

    def _open(self) -> Any:
        self._file.seek(0)
        # Pages are read as they are needed, and repeated ids are in memory once.
        return pq.ParquetFile(
            self._file,
            pre_buffer=False,
            buffer_size=BLOCK_BYTES,
            read_dictionary=self._dictionaries,
        )

    def _check_ids(self, kind: pa.DataType) -> None:
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if _is_text(plain):
            self._dictionaries.append(self._ids)
            return
        if pa.types.is_integer(plain) or _extension(plain) == "arrow.uuid":
            what = "UUIDs" if _extension(plain) else f"integers ({plain})"
            self.notes.append(f"{self._ids!r} holds {what}, stored as text")
            return
        raise FileError(
            f"{self.name}: {self._ids!r} is of type {kind}; ids are text, integers or UUIDs, so "
            f"cast it to string, or name another column by {self._columns.id_option}"
        )

    def _check_vectors(self, kind: pa.DataType) -> None:
        """Raises: FileError: vectors of this type are not read."""
        lists = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        if _is_list(lists) and _is_number(lists.value_type):
            return
        option = self._columns.vector_option
        hint = f"lists of numbers are read, of which {option} may name another column"
        if _is_list(lists) and _is_list(lists.value_type):
            hint = "one list of numbers a row is read, so flatten it"
        elif pa.types.is_binary(lists) or pa.types.is_fixed_size_binary(lists):
            hint = "bytes do not say which numbers they are, so write them as lists of floats"
        elif _is_text(lists):
            hint = "text is not taken apart, so write lists of floats"
        raise FileError(f"{self.name}: {self._vectors!r} is of type {kind}; {hint}")

    def _check_attribute(self, name: str, kind: pa.DataType) -> bool:
        """Whether a column has text.

        Raises:
            FileError: it is of a type that no attribute has.
        """
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if _is_text(plain) or (_is_list(plain) and _is_text(plain.value_type)):
            return True
        if not (_is_number(plain) or pa.types.is_boolean(plain) or pa.types.is_null(plain)):
            option = self._columns.attributes_option
            raise FileError(
                f"{self.name}: {name!r} is of type {kind}; attributes are text, numbers, booleans "
                f"or lists of text, so cast it, or leave it out of {option}"
            )
        return False

    def _check_sizes(self, leaves: list[int], limits: Files) -> int:
        """How many rows are read at a time, at most.

        Args:
            leaves: The positions of the columns that are read, in the file's own order.
            limits: On the expansion of a file.

        Raises:
            FileError: the columns are far larger in memory than in the file, or the rows too wide.
        """
        handle = self._file.fileno()
        done = subprocess.run(  # noqa: S603 - this interpreter, and a file that is open already
            [
                *(sys.executable, "-c", _SIZES, f"/dev/fd/{handle}", str(_WIDEST_BYTES)),
                *map(str, leaves),
            ],
            pass_fds=(handle,),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise FileError(f"{self.name}: cannot be read: its footer is damaged")
        compressed, decoded, row_bytes = map(int, done.stdout.split())
        problem = expansion_problem(compressed, decoded, limits)
        if problem:
            raise FileError(f"{self.name}: {problem}")
        if row_bytes > _ROW_BYTES_MAX:
            raise FileError(
                f"{self.name}: its rows take {row_bytes:,} bytes on average, over the limit of "
                f"{_ROW_BYTES_MAX:,}"
            )
        return _BATCH_BYTES // max(row_bytes, 1)

    def _batches(self, rows_max: int) -> Iterator[Batch]:
        number = 1
        with self._open() as opened:
            columns = [self._ids, self._vectors, *self._attributes]
            size = min(rows_max, self._rows_max)
            for table in opened.iter_batches(batch_size=size, columns=columns):
                ids = _texts(table.column(self._ids))
                vectors = _vectors(table.column(self._vectors))
                attributes = {name: _values(table.column(name)) for name in self._attributes}
                yield batch_of(number, ids, vectors, attributes)
                number += len(ids)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _root(leaf: str, names: list[str]) -> str:
    """The name of the column that has this leaf; a name may have dots, as a path has."""
    while leaf not in names and "." in leaf:
        leaf = leaf.rpartition(".")[0]
    return leaf


def _extension(kind: pa.DataType) -> str:
    return str(kind.extension_name) if isinstance(kind, pa.BaseExtensionType) else ""


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _texts(column: Any) -> list[str | bytes | None]:
    """Each row's id as text; bytes where it is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        # The dictionary may have the ids of a million rows.
        distinct = pc.unique(column.indices)
        texts = _texts(column.dictionary.take(distinct.drop_null()))
        by_index = dict(zip(distinct.drop_null().to_pylist(), texts, strict=True))
        return [by_index.get(index) for index in column.indices.to_pylist()]
    try:
        return [None if value is None else text_of(value) for value in column.to_pylist()]
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else decoded(value) for value in values]


def _values(column: Any) -> list[Any]:
    """Each row's value of an attribute; None where it is null, bytes where it is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        return _texts(column)
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b""


def _vectors(column: Any) -> list[NDArray[np.float32] | str]:
    """Each row's vector as float32 (d,), or why it is not valid."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    # list_value_length is null for a null vector, which `flatten` skips too.
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    flat = column.flatten()
    numbers = flat.to_numpy(zero_copy_only=False)
    missing = flat.is_null().to_numpy(zero_copy_only=False) if flat.null_count else None
    ends = np.cumsum(lengths)
    converted = as_float32(numbers)
    found: list[NDArray[np.float32] | str] = []
    for valid, end, length in zip(
        column.is_valid().to_pylist(), ends.tolist(), lengths.tolist(), strict=True
    ):
        start = end - length
        if not valid:
            found.append("is null")
        elif missing is not None and missing[start:end].any():
            found.append("holds a null")
        else:
            found.append(converted[start:end])
    return found
