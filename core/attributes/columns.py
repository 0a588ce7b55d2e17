"""The attributes of a version, mapped from their file: which rows match a filter, and of a row."""

import math
import mmap
from bisect import bisect_left, bisect_right
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.attributes import column_format as layout
from core.attributes.filters import Exists, Filter, OneOf, Within
from core.attributes.selection import Condition, Mask, select
from core.attributes.values import Attributes, decode_attributes
from core.errors import Corrupt

_HALF: Final = 2
_FEW: Final = (OneOf, Within)
_NO_ROWS: Final[NDArray[np.int64]] = np.empty(0, dtype=np.int64)
_NO_ROWS.flags.writeable = False
_DIRECTORY: Final = msgspec.json.Decoder(layout.Directory)


class Columns:
    """The columns of a version. Safe to use from any number of threads."""

    def __init__(self, path: Path, rows: int) -> None:
        """Maps a file that `ColumnWriter` wrote for so many rows.

        Raises:
            Corrupt: it is no such file, is cut short, or is of another number of rows.
        """
        arrays, directory = _opened(path)
        if directory.rows != rows:
            raise Corrupt(f"{path.name} is of {directory.rows} rows, not of {rows}", path.name)
        self.rows = rows
        self._text = arrays.of(directory.texts.text, "text").data
        self._starts = arrays.of(directory.texts.starts, "starts", rows + 1).data
        self._columns = {
            name: _Column(arrays, rows, column) for name, column in directory.columns.items()
        }

    def text(self, row: int) -> bytes:
        """The attributes of a row, as `canonical_text` writes them."""
        return bytes(self._text[self._starts[row] : self._starts[row + 1]])

    def attributes(self, row: int) -> Attributes:
        """The attributes of a row, which may be any; empty where it has none.

        Raises:
            Corrupt: they cannot be read.
        """
        text = self.text(row)
        return decode_attributes(text) if text else {}

    def select(self, condition: Filter) -> Mask:
        """The rows that match, in a mask which the caller may change."""
        return select(condition, self.rows, self._matching)

    def few(self, condition: Filter, most: int) -> NDArray[np.int64] | None:
        """The rows that match, ascending, where a filter of one condition has no more than so many.

        None of other filters, and of more rows. Made without a look at the rows that do not match.
        """
        if not isinstance(condition, _FEW):
            return None
        column = self._columns.get(condition.name)
        return _NO_ROWS if column is None else column.few(condition, most)

    def _matching(self, condition: Condition) -> Mask:
        column = self._columns.get(condition.name)
        if column is None:
            return np.zeros(self.rows, dtype=np.bool_)
        return column.mask(condition)


class _Column:
    """One attribute."""

    def __init__(self, arrays: "_Arrays", rows: int, column: layout.Column) -> None:
        self._present = _RowSet(arrays, rows, column.present)
        self._booleans = {
            value: _RowSet(arrays, rows, part)
            for value, part in ((False, column.false), (True, column.true))
            if part is not None
        }
        self._numbers = None if column.numbers is None else _Numbers(arrays, column.numbers)
        self._strings = None if column.strings is None else _Strings(arrays, column.strings)

    def mask(self, condition: Condition) -> Mask:
        """The rows that match."""
        if isinstance(condition, Exists):
            return self._present.mask()
        if isinstance(condition, Within):
            return self._within(condition)
        mask = self._present.empty()
        for value in condition.booleans & self._booleans.keys():
            mask |= self._booleans[value].mask()
        if self._numbers is not None:
            for number in condition.numbers:
                mask[self._numbers.rows[self._numbers.between(Within("", number, number))]] = True
        if self._strings is not None:
            for text in condition.strings:
                mask[self._strings.rows_of(text)] = True
        return mask

    def few(self, condition: OneOf | Within, most: int) -> NDArray[np.int64] | None:
        """As `Columns.few`."""
        numbers = self._numbers
        if isinstance(condition, Within):
            if numbers is None:
                return _NO_ROWS
            inside = numbers.between(condition)
            return None if inside.stop - inside.start > most else _ascending(numbers.rows[inside])
        if condition.booleans & self._booleans.keys():
            return None
        parts: list[NDArray[np.int32]] = []
        if numbers is not None:
            wanted = [Within("", number, number) for number in condition.numbers]
            parts = [numbers.rows[numbers.between(each)] for each in wanted]
        if self._strings is not None:
            parts += [self._strings.rows_of(text) for text in condition.strings]
        if sum(part.shape[0] for part in parts) > most:
            return None
        if len(parts) == 1:
            return _ascending(parts[0])
        # A row with a list may have several of the values.
        return np.unique(np.concatenate(parts)).astype(np.int64) if parts else _NO_ROWS

    @cached_property
    def _has_numbers_alone(self) -> bool:
        """Whether each row that has the attribute has a number; an empty list is no value."""
        return self._numbers is not None and self._present.count == self._numbers.rows.shape[0]

    def _within(self, condition: Within) -> Mask:
        numbers = self._numbers
        if numbers is None:
            return self._present.empty()
        inside = numbers.between(condition)
        size = inside.stop - inside.start
        most = _HALF * size > numbers.rows.shape[0]
        if most and self._present.as_bits and self._has_numbers_alone:
            # Most rows match: fewer are cleared than would be set.
            mask = self._present.mask()
            mask[numbers.rows[: inside.start]] = False
            mask[numbers.rows[inside.stop :]] = False
            return mask
        mask = self._present.empty()
        mask[numbers.rows[inside]] = True
        return mask


class _RowSet:
    """A set of rows, as their numbers or as bits."""

    def __init__(self, arrays: "_Arrays", rows: int, part: layout.Part) -> None:
        self._rows = rows
        self.as_bits = part.kind == "bits"
        self._values = arrays.of(part, "bits" if self.as_bits else "rows")

    @property
    def count(self) -> int:
        """How many there are."""
        return int(np.bitwise_count(self._values).sum()) if self.as_bits else len(self._values)

    def empty(self) -> Mask:
        """No row."""
        return np.zeros(self._rows, dtype=np.bool_)

    def mask(self) -> Mask:
        """These rows."""
        if self.as_bits:
            return np.unpackbits(self._values, count=self._rows).view(np.bool_)
        mask = self.empty()
        mask[self._values] = True
        return mask


class _Numbers:
    """The numbers of an attribute."""

    def __init__(self, arrays: "_Arrays", parts: layout.Numbers) -> None:
        self._values = arrays.of(parts.values, "floats").data
        self.rows = arrays.of(parts.rows, "rows", len(self._values))

    def between(self, bounds: Within) -> slice:
        """Which of them are between these bounds."""
        values = self._values
        start, stop = 0, len(values)  # an infinite bound is none
        if bounds.low != -math.inf:
            start = (bisect_right if bounds.above_low else bisect_left)(values, bounds.low)
        if bounds.high != math.inf:
            stop = (bisect_left if bounds.below_high else bisect_right)(values, bounds.high, start)
        return slice(start, stop)


class _Strings:
    """The different strings of an attribute, ascending, as UTF-8."""

    def __init__(self, arrays: "_Arrays", parts: layout.Strings) -> None:
        self._text = arrays.of(parts.text, "text").data
        self._text_starts = arrays.of(parts.text_starts, "starts").data
        self._row_starts = arrays.of(parts.row_starts, "starts", len(self._text_starts))
        self._rows = arrays.of(parts.rows, "rows")

    def rows_of(self, text: str) -> NDArray[np.int32]:
        """The rows that have it."""
        encoded, places = text.encode(), range(len(self._text_starts) - 1)
        at = bisect_left(places, encoded, key=self._string)
        if at == len(places) or self._string(at) != encoded:
            return self._rows[:0]
        return self._rows[self._row_starts[at] : self._row_starts[at + 1]]

    def _string(self, at: int) -> bytes:
        return bytes(self._text[self._text_starts[at] : self._text_starts[at + 1]])


class _Arrays:
    """The arrays of a mapped file."""

    def __init__(self, data: mmap.mmap, start: int, file_name: str) -> None:
        self._data = data
        self._start = start
        self._file_name = file_name

    def of(self, part: layout.Part, kind: str, count: int | None = None) -> NDArray[Any]:
        """One array, not a copy.

        Raises:
            Corrupt: it is of another kind or number, or the file ends before it.
        """
        dtype = np.dtype(layout.DTYPES[kind])
        at = self._start + part.start
        if part.kind != kind or (count is not None and part.count != count):
            raise Corrupt(f"{self._file_name} has a part that does not fit", self._file_name)
        if part.start < 0 or part.count < 0 or at + part.count * dtype.itemsize > len(self._data):
            raise Corrupt(f"{self._file_name} is cut short", self._file_name)
        return np.frombuffer(self._data, dtype=dtype, count=part.count, offset=at)


def _ascending(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """The same rows, each once in them."""
    found = rows.astype(np.int64)
    found.sort()
    return found


def _opened(path: Path) -> tuple[_Arrays, layout.Directory]:
    with path.open("rb") as file:
        head = file.read(layout.HEAD_BYTES)
        if len(head) < layout.HEAD_BYTES or not head.startswith(layout.COLUMNS_MAGIC):
            raise Corrupt(f"{path.name} has no columns of attributes", path.name)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = layout.HEAD_BYTES + int.from_bytes(head[len(layout.COLUMNS_MAGIC) :], "little")
    if start > len(data):
        raise Corrupt(f"{path.name} is cut short", path.name)
    try:
        directory = _DIRECTORY.decode(data[layout.HEAD_BYTES : start])
    except msgspec.DecodeError as error:
        raise Corrupt(f"{path.name} has no valid directory: {error}", path.name) from None
    return _Arrays(data, start, path.name), directory
