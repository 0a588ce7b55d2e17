"""Writing the attributes of a version as columns; `column_format` describes the file."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.attributes.column_format import (
    ALIGNMENT,
    COLUMNS_MAGIC,
    DTYPES,
    HEAD_BYTES,
    Column,
    Directory,
    Kind,
    Numbers,
    Part,
    Strings,
    Texts,
)
from core.attributes.filters import Row
from core.attributes.values import canonical_text
from core.errors import BuildFailed

_NUMBER_BYTES: Final = 12
_ROW_BYTES: Final = 4
_STRING_BYTES: Final = 16
"""Of a string besides its text: where it begins, and where its rows do."""
_START_BYTES: Final = 8
"""Of a row, where its text begins."""
_NAME_BYTES: Final = 300
"""Of an attribute in the directory, about."""


class _Collected:
    """The values of one attribute, as they come."""

    def __init__(self) -> None:
        self.present = array("i")
        self.false, self.true = array("i"), array("i")
        self.numbers = array("d")
        self.number_rows = array("i")
        self.codes: dict[str, int] = {}
        """The place of each string in the order of arrival."""
        self.string_codes = array("i")
        self.string_rows = array("i")


class ColumnWriter:
    """Collects the attributes of the rows of a version, in order, and writes their columns."""

    def __init__(self, rows: int, *, bytes_max: int) -> None:
        """For so many rows, and columns of up to about so many bytes."""
        self._rows = rows
        self._bytes_max = bytes_max
        self._bytes = _START_BYTES * rows
        self._next = 0
        self.with_attributes = 0
        """Rows that have any, so far."""
        self._text = bytearray()
        self._starts = array("q", (0,))
        self._columns: dict[str, _Collected] = {}

    def append(self, attributes: Row) -> None:
        """Adds the attributes of the next row.

        Raises:
            BuildFailed: the columns would be larger than allowed.
        """
        row, self._next = self._next, self._next + 1
        self.with_attributes += bool(attributes)
        text = canonical_text(attributes)
        self._bytes += len(text)
        self._text += text
        self._starts.append(len(self._text))
        for name, value in attributes.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = _Collected()
                self._bytes += _NAME_BYTES
            self._bytes += _ROW_BYTES
            column.present.append(row)
            if isinstance(value, bool):
                self._bytes += _ROW_BYTES
                (column.true if value else column.false).append(row)
            elif isinstance(value, int | float):
                self._bytes += _NUMBER_BYTES
                column.numbers.append(value)
                column.number_rows.append(row)
            else:
                self._append_strings(column, row, {value} if isinstance(value, str) else set(value))
        if self._bytes > self._bytes_max:
            raise BuildFailed(
                f"the attributes of the first {self._next} of {self._rows} rows take "
                f"{self._bytes} bytes in the index, the most is {self._bytes_max}: remove "
                "attributes that no filter needs"
            )

    def _append_strings(self, column: _Collected, row: int, strings: set[str]) -> None:
        for text in strings:
            code = column.codes.get(text)
            if code is None:
                code = column.codes[text] = len(column.codes)
                self._bytes += len(text.encode()) + _STRING_BYTES
            self._bytes += _ROW_BYTES
            column.string_codes.append(code)
            column.string_rows.append(row)

    def write(self, path: Path) -> None:
        """Writes the file, once every row was added.

        Raises:
            ValueError: rows are missing.
        """
        if self._next != self._rows:
            raise ValueError(f"{self._next} of {self._rows} rows were added")
        arrays = _Arrays(self._rows)
        columns = {
            name: _column(collected, arrays) for name, collected in sorted(self._columns.items())
        }
        texts = Texts(
            arrays.add("text", np.frombuffer(self._text, dtype=np.uint8)),
            arrays.add("starts", np.frombuffer(self._starts, dtype=np.int64)),
        )
        directory = msgspec.json.encode(Directory(self._rows, texts, columns))
        directory += b" " * (-(HEAD_BYTES + len(directory)) % ALIGNMENT)
        with path.open("wb") as file:
            file.write(COLUMNS_MAGIC)
            file.write(len(directory).to_bytes(8, "little"))
            file.write(directory)
            file.writelines(arrays.data)


class _Arrays:
    """The arrays of a file, in order."""

    def __init__(self, rows: int) -> None:
        self.data: list[bytes] = []
        self._rows = rows
        self._end = 0

    def add(self, kind: Kind, values: NDArray[Any]) -> Part:
        data = values.astype(DTYPES[kind], copy=False).tobytes()
        part = Part(kind, self._end, values.shape[0])
        self.data.append(data + bytes(-len(data) % ALIGNMENT))
        self._end += len(self.data[-1])
        return part

    def add_set(self, rows: "array[int]") -> Part | None:
        """A set of rows in the smaller form; None for none."""
        if not rows:
            return None
        numbers = np.frombuffer(rows, dtype=np.int32)
        if numbers.nbytes <= self._rows // 8:
            return self.add("rows", numbers)
        mask = np.zeros(self._rows, dtype=np.bool_)
        mask[numbers] = True
        return self.add("bits", np.packbits(mask))


def _column(collected: _Collected, arrays: _Arrays) -> Column:
    present = arrays.add_set(collected.present)
    if present is None:
        raise AssertionError("an attribute is collected with its first row")
    numbers = strings = None
    if collected.numbers:
        values = np.frombuffer(collected.numbers, dtype=np.float64)
        order = np.argsort(values, kind="stable")
        rows = np.frombuffer(collected.number_rows, dtype=np.int32)
        numbers = Numbers(arrays.add("floats", values[order]), arrays.add("rows", rows[order]))
    if collected.codes:
        strings = _strings(collected, arrays)
    return Column(
        present=present,
        true=arrays.add_set(collected.true),
        false=arrays.add_set(collected.false),
        numbers=numbers,
        strings=strings,
    )


def _strings(collected: _Collected, arrays: _Arrays) -> Strings:
    texts = sorted((text.encode(), code) for text, code in collected.codes.items())
    rank = np.empty(len(texts), dtype=np.int64)
    rank[[code for _, code in texts]] = np.arange(len(texts))
    codes = rank[np.frombuffer(collected.string_codes, dtype=np.int32)]
    order = np.argsort(codes, kind="stable")
    rows = np.frombuffer(collected.string_rows, dtype=np.int32)
    text = np.frombuffer(b"".join(text for text, _ in texts), dtype=np.uint8)
    return Strings(
        text=arrays.add("text", text),
        text_starts=arrays.add("starts", _starts([len(text) for text, _ in texts])),
        row_starts=arrays.add("starts", _starts(np.bincount(codes))),
        rows=arrays.add("rows", rows[order]),
    )


def _starts(sizes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
