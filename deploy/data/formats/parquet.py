"""Embeddings from Parquet, a batch at a time. Columns of other types are refused by their type."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.settings import Files
from deploy.data.formats.file_input import BLOCK_BYTES, expansion_problem
from deploy.data.formats.rows import BadRow, Batch, Columns, Row, as_float32, text_of
from deploy.errors import CommandError

_WIDEST_BYTES: Final = 8
"""A number in memory, whatever its encoding: runs of one value take next to nothing in a file."""
_SIZES: Final = """
import sys, pyarrow.parquet as pq
metadata = pq.ParquetFile(sys.argv[1]).metadata
columns = [i for i in range(metadata.num_columns)
           if metadata.schema.column(i).path.split(".")[0] in sys.argv[2:]]
chunks = [metadata.row_group(group).column(i)
          for group in range(metadata.num_row_groups) for i in columns]
print(sum(chunk.total_compressed_size for chunk in chunks),
      sum(chunk.total_uncompressed_size for chunk in chunks),
      sum(chunk.num_values for chunk in chunks))
"""
"""Prints the bytes of the columns as compressed and as encoded, and how many values they have.

A process of its own, since pyarrow ends the process where the footer of a column is damaged."""


class ParquetRows:
    """The two columns of one file."""

    unit = "rows"

    def __init__(self, file: BinaryIO, name: str, columns: Columns, limits: Files) -> None:
        self._file = file
        self._name = name
        self._repeated: list[str] = []
        self.notes: list[str] = []
        with self._open() as opened:
            schema = opened.schema_arrow
            self._ids, self._vectors = columns.choose(schema.names, name)
            self._check_ids(schema.field(self._ids).type)
            self._list_size = self._check_vectors(schema.field(self._vectors).type)
            self.units: int | None = opened.metadata.num_rows
            self._encoded = sum(
                opened.metadata.row_group(group).total_byte_size
                for group in range(opened.metadata.num_row_groups)
            )
        self._check_expansion(limits)

    def _open(self) -> Any:
        self._file.seek(0)
        # Pages are read as they are needed, and each text of the ids is in memory once.
        return pq.ParquetFile(
            self._file,
            pre_buffer=False,
            buffer_size=BLOCK_BYTES,
            read_dictionary=self._repeated,
        )

    def _check_ids(self, kind: pa.DataType) -> None:
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if _is_text(plain):
            self._repeated = [self._ids]
            return
        if pa.types.is_integer(plain) or _extension(plain) == "arrow.uuid":
            what = "UUIDs" if _extension(plain) else f"integers ({plain})"
            self.notes.append(f"{self._ids!r} holds {what}, stored as text")
            return
        raise CommandError(
            f"{self._name}: {self._ids!r} is of type {kind}; ids are text, integers or UUIDs, so "
            "cast it to string, or name another column by --id-column"
        )

    def _check_vectors(self, kind: pa.DataType) -> int | None:
        """The length that the type itself fixes."""
        lists = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        if _is_list(lists) and _is_number(lists.value_type):
            return int(lists.list_size) if pa.types.is_fixed_size_list(lists) else None
        hint = "lists of numbers are read, of which --vector-column may name another column"
        if _is_list(lists) and _is_list(lists.value_type):
            hint = "one list of numbers a row is read, so flatten it"
        elif pa.types.is_binary(lists) or pa.types.is_fixed_size_binary(lists):
            hint = "bytes do not say which numbers they are, so write them as lists of floats"
        elif _is_text(lists):
            hint = "text is not taken apart, so write lists of floats"
        raise CommandError(f"{self._name}: {self._vectors!r} is of type {kind}; {hint}")

    def _check_expansion(self, limits: Files) -> None:
        """Raises: CommandError: the columns are far larger in memory than in the file."""
        if self._list_size is not None:  # nothing that the footer of a column would add
            numbers = (self.units or 0) * self._list_size
            decoded = max(self._encoded, numbers * _WIDEST_BYTES)
            self._refuse(self._file.seek(0, os.SEEK_END), decoded, limits)
            return
        handle = self._file.fileno()
        done = subprocess.run(  # noqa: S603 - this interpreter, and a file that is open already
            [sys.executable, "-c", _SIZES, f"/dev/fd/{handle}", self._ids, self._vectors],
            pass_fds=(handle,),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise CommandError(f"{self._name}: does not read: its footer is damaged")
        compressed, encoded, numbers = map(int, done.stdout.split())
        self._refuse(compressed, max(encoded, numbers * _WIDEST_BYTES), limits)

    def _refuse(self, compressed: int, decoded: int, limits: Files) -> None:
        problem = expansion_problem(compressed, decoded, limits)
        if problem:
            raise CommandError(f"{self._name}: {problem}")

    def batches(self, rows_max: int) -> Iterator[Batch]:
        """The rows from the start on."""
        number = 1
        with self._open() as opened:
            columns = [self._ids, self._vectors]
            for table in opened.iter_batches(batch_size=rows_max, columns=columns):
                ids = _texts(table.column(self._ids))
                vectors = _vectors(table.column(self._vectors))
                rows: list[Row] = []
                bad: list[BadRow] = []
                for offset, (product_id, vector) in enumerate(zip(ids, vectors, strict=True)):
                    at = number + offset
                    if not isinstance(product_id, str):
                        reason = "is null" if product_id is None else "is not UTF-8"
                        bad.append(BadRow(at, None, f"product_id {reason}"))
                    elif isinstance(vector, str):
                        bad.append(BadRow(at, product_id, f"vector {vector}"))
                    else:
                        rows.append(Row(at, product_id, vector))
                number += len(ids)
                yield Batch(rows, bad, len(ids))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


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
        # The dictionary may be that of a million rows.
        distinct = pc.unique(column.indices)
        texts = _texts(column.dictionary.take(distinct.drop_null()))
        by_index = dict(zip(distinct.drop_null().to_pylist(), texts, strict=True))
        return [by_index.get(index) for index in column.indices.to_pylist()]
    try:
        return [None if value is None else text_of(value) for value in column.to_pylist()]
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else _decoded(value) for value in values]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _vectors(column: Any) -> list[NDArray[np.float32] | str]:
    """Each row's vector as float32 (d,), or why it is none."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    # list_value_length is null for a null vector, whose numbers `flatten` leaves out too.
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
