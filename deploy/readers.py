"""Files of embeddings, read in batches: Parquet, `.npz`, JSON lines.

Parquet and JSON lines are never in memory as a whole. A row that cannot be read comes out as a
`BadRow`; whether the others hold is `core.usecases.embeddings`' to say.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deploy.errors import CommandError

LINE_BYTES_MAX = 1024 * 1024
"""Of one JSON line; 4,096 numbers written out in full take a tenth of it."""
_ID_COLUMNS = ("product_id", "product_ids")
_VECTOR_COLUMNS = ("vector", "vectors")


class Row(msgspec.Struct, frozen=True):
    """One row that reads."""

    number: int
    """From 1; of JSON lines, the line's number."""
    product_id: str
    vector: NDArray[np.float32]
    """float32 (d,); infinite where the file's number is too large for one."""


class BadRow(msgspec.Struct, frozen=True):
    """One row that does not hold, and why."""

    number: int
    product_id: str | None
    reason: str


class Batch(msgspec.Struct, frozen=True):
    """Some rows of the file, in order."""

    rows: list[Row]
    bad: list[BadRow]
    units: int
    """How far this batch brings the reader towards `Source.units`."""


class Source:
    """A file that can be read from its start."""

    def __init__(self, path: Path, kind: str, units: int, unit: str) -> None:
        self.path = path
        self.kind = kind
        self.units = units
        """All there is: rows, or bytes where rows cannot be counted without reading."""
        self.unit = unit

    def batches(self, rows_max: int) -> Iterator[Batch]:
        """The file in batches of up to `rows_max` rows.

        Raises:
            CommandError: when the file as a whole does not read from some point on.
        """
        try:
            if self.kind == "parquet":
                yield from _parquet(self.path, rows_max)
            elif self.kind == "npz":
                yield from _npz(self.path, rows_max)
            else:
                yield from _json_lines(self.path, rows_max)
        except (OSError, pa.ArrowException, ValueError, zipfile.BadZipFile) as error:
            raise CommandError(f"{self.path}: {_one_line(error)}") from error


def open_source(path: Path) -> Source:
    """Looks at a file without reading its rows.

    Raises:
        CommandError: when it is not there, or is none of the three.
    """
    if not path.is_file():
        raise CommandError(f"{path}: there is no such file")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                _column(file.schema_arrow.names, _ID_COLUMNS, path)
                _column(file.schema_arrow.names, _VECTOR_COLUMNS, path)
                return Source(path, "parquet", file.metadata.num_rows, "rows")
        if suffix == ".npz":
            ids, _ = _arrays(path)
            return Source(path, "npz", len(ids), "rows")
        if suffix in {".jsonl", ".ndjson"}:
            return Source(path, "jsonl", path.stat().st_size, "bytes")
    except (OSError, pa.ArrowException, ValueError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path}: {_one_line(error)}") from error
    raise CommandError(f"{path}: takes a .parquet, .npz, .jsonl or .ndjson file")


def _column(names: list[str], wanted: tuple[str, ...], path: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise CommandError(f"{path}: has no {wanted[0]!r} (it has {', '.join(names) or 'nothing'})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- Parquet --------------------------------------------------------------------------------------


def _parquet(path: Path, rows_max: int) -> Iterator[Batch]:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        id_name = _column(names, _ID_COLUMNS, path)
        vector_name = _column(names, _VECTOR_COLUMNS, path)
        number = 1
        for table in file.iter_batches(batch_size=rows_max, columns=[id_name, vector_name]):
            ids = table.column(id_name).to_pylist()
            vectors = _vectors(table.column(vector_name))
            rows: list[Row] = []
            bad: list[BadRow] = []
            for offset, product_id in enumerate(ids):
                _sort_in(number + offset, product_id, vectors[offset], rows, bad)
            number += len(ids)
            yield Batch(rows, bad, len(ids))


def _vectors(column: Any) -> list[NDArray[np.float32] | str]:
    """Each row's vector as float32 (d,), or why it is none."""
    kind = column.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise CommandError(f"the vectors are of type {kind}, and must be lists of numbers")
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise CommandError(f"the vectors are lists of {kind.value_type}, not of numbers")
    # list_value_length is null for a null vector, whose numbers `flatten` leaves out too.
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    flat = column.flatten()
    numbers = flat.to_numpy(zero_copy_only=False)
    missing = flat.is_null().to_numpy(zero_copy_only=False) if flat.null_count else None
    ends = np.cumsum(lengths)
    converted = _float32(numbers)
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


def _float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # infinite is what the check then finds
        return np.ascontiguousarray(numbers, dtype=np.float32)


def _sort_in(
    number: int,
    product_id: object,
    vector: NDArray[np.float32] | str,
    rows: list[Row],
    bad: list[BadRow],
) -> None:
    if not isinstance(product_id, str):
        what = "null" if product_id is None else f"of type {type(product_id).__name__}"
        bad.append(BadRow(number, None, f"product_id is {what}, and must be a string"))
    elif isinstance(vector, str):
        bad.append(BadRow(number, product_id, f"vector {vector}"))
    else:
        rows.append(Row(number, product_id, vector))


# --- npz ------------------------------------------------------------------------------------------


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        ids = arrays[_column(arrays.files, ("product_ids", "product_id"), path)]
        vectors = arrays[_column(arrays.files, ("vectors", "vector"), path)]
    if ids.dtype.kind != "U" or ids.ndim != 1:
        raise CommandError(f"{path}: product_ids must be an array of strings, one dimension")
    if vectors.dtype.kind not in "fiu" or vectors.ndim != 2:  # noqa: PLR2004 - rows x numbers
        raise CommandError(f"{path}: vectors must be numbers, one row a product")
    if len(ids) != len(vectors):
        raise CommandError(f"{path}: has {len(ids)} product ids and {len(vectors)} vectors")
    return ids, vectors


def _npz(path: Path, rows_max: int) -> Iterator[Batch]:
    ids, vectors = _arrays(path)
    for start in range(0, len(ids), rows_max):
        numbers = _float32(vectors[start : start + rows_max])
        rows = [
            Row(start + offset + 1, str(product_id), numbers[offset])
            for offset, product_id in enumerate(ids[start : start + rows_max])
        ]
        yield Batch(rows, [], len(rows))


# --- JSON lines -----------------------------------------------------------------------------------


class _Line(msgspec.Struct):
    product_id: str
    vector: list[float]


BOM = b"\xef\xbb\xbf"
"""Which some editors put before UTF-8."""
_LINES = msgspec.json.Decoder(_Line)


def _json_lines(path: Path, rows_max: int) -> Iterator[Batch]:
    with path.open("rb") as file:
        read = len(BOM)
        if file.read(read) != BOM:
            read = file.seek(0)
        rows: list[Row] = []
        bad: list[BadRow] = []
        for number, line, size in numbered_lines(file, LINE_BYTES_MAX):
            read += size
            if line is None:
                bad.append(BadRow(number, None, f"is longer than {LINE_BYTES_MAX} bytes"))
            elif line.strip():
                _decode(number, line, rows, bad)
            if len(rows) + len(bad) >= rows_max:
                yield Batch(rows, bad, read)
                rows, bad, read = [], [], 0
        yield Batch(rows, bad, read)


def numbered_lines(file: BinaryIO, bytes_max: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(number, line, its bytes); None stands for a line over the limit, which is skipped."""
    number = 0
    while line := file.readline(bytes_max + 1):
        number += 1
        size = len(line)
        if size <= bytes_max or line.endswith(b"\n"):
            yield number, line, size
            continue
        while rest := file.readline(bytes_max):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        yield number, None, size


def _decode(number: int, line: bytes, rows: list[Row], bad: list[BadRow]) -> None:
    try:
        decoded = _LINES.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        bad.append(BadRow(number, None, _one_line(error)))
    except UnicodeDecodeError:
        bad.append(BadRow(number, None, "is not UTF-8"))
    else:
        rows.append(Row(number, decoded.product_id, _float32(np.array(decoded.vector))))
