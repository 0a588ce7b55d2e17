"""The attributes of rows that come one after the other, as columns in memory.

For attributes that changed since a version was built: many thousand rows are matched by a few calls
of numpy a condition, where a loop over their attributes would take a microsecond a row and
condition. Rows are only ever added, so that a search uses as many as there were when it began.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from core.attributes.filters import Exists, Filter, OneOf, Row, Within
from core.attributes.selection import Condition, Mask, select

_FIRST: Final = 64
"""Values that an array has room for at first."""
_STRING_BYTES: Final = 150
"""Of one string and its code in a dict, about."""


class GrowingArray:
    """Numbers, one after the other. What was added never changes."""

    def __init__(self, dtype: Any, values: Sequence[Any] | NDArray[Any] = ()) -> None:
        self._values = np.empty(0, dtype=dtype)
        self._used = 0
        if len(values):
            self.extend(values)

    def __len__(self) -> int:
        return self._used

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._values.nbytes

    def extend(self, values: Sequence[Any] | NDArray[Any]) -> None:
        """Adds values."""
        used = self._used + len(values)
        if used > self._values.shape[0]:
            grown = np.empty(max(_FIRST, used + used // 2), dtype=self._values.dtype)
            grown[: self._used] = self._values[: self._used]
            self._values = grown
        self._values[self._used : used] = values
        self._used = used

    def first(self, count: int) -> NDArray[Any]:
        """The first values, not a copy."""
        return self._values[:count]

    def all(self) -> NDArray[Any]:
        """The values as of now, not a copy."""
        used = self._used  # before the array, which may be replaced by one with room for more
        return self._values[:used]


class _Values:
    """Values of one type of one attribute, and the row of each, ascending."""

    def __init__(self, dtype: Any) -> None:
        self.values = GrowingArray(dtype)
        self.rows = GrowingArray(np.int32)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.rows.nbytes

    def extend(self, values: Sequence[Any] | NDArray[Any], rows: Any) -> None:
        self.values.extend(values)
        self.rows.extend(rows)  # last: a search looks at the rows, and then at as many values

    def before(self, row: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """The values of rows up to this one, and these rows."""
        rows = self.rows.all()
        rows = rows[: np.searchsorted(rows, row)]
        return self.values.first(rows.shape[0]), rows

    def renumbered(self, numbers: NDArray[np.int32], row: int) -> "_Values":
        """Those of rows up to this one that have a new number, which is not -1."""
        values, rows = self.before(row)
        new = numbers[rows]
        there = new >= 0
        result = _Values(values.dtype)
        result.extend(values[there], new[there])
        return result


class _Column:
    """One attribute."""

    def __init__(self) -> None:
        self.present = _Values(np.bool_)
        """The rows that have it; the value says nothing."""
        self.numbers = _Values(np.float64)
        self.booleans = _Values(np.bool_)
        self.strings = _Values(np.int32)
        """Codes of the strings, those in lists too."""
        self.codes: dict[str, int] = {}
        """Of each string: only ever added to."""
        self.single = True
        """Whether no row has two strings."""

    @property
    def parts(self) -> tuple[_Values, ...]:
        return self.present, self.numbers, self.booleans, self.strings

    def extend(self, rows: Sequence[int], values: Sequence[Any]) -> None:
        """Adds the values that these rows have."""
        numbers: list[tuple[float, int]] = []
        booleans: list[tuple[bool, int]] = []
        strings: list[tuple[int, int]] = []
        codes = self.codes
        for row, value in zip(rows, values, strict=True):
            if isinstance(value, bool):
                booleans.append((value, row))
            elif isinstance(value, int | float):
                numbers.append((value, row))
            else:
                texts = (value,) if isinstance(value, str) else value
                self.single = self.single and len(texts) <= 1
                strings += [(codes.setdefault(text, len(codes)), row) for text in texts]
        for part, pairs in (
            (self.numbers, numbers),
            (self.booleans, booleans),
            (self.strings, strings),
        ):
            if pairs:
                part.extend(*zip(*pairs, strict=True))
        self.present.extend(np.ones(len(rows), dtype=np.bool_), rows)

    def recode(self, codes: dict[str, int]) -> None:
        """Takes new codes for its strings, which have these, so that no others are kept."""
        texts = list(codes)  # in the order of their codes
        values = self.strings.values.all()
        used, new = np.unique(values, return_inverse=True)
        self.codes = {texts[code]: number for number, code in enumerate(used.tolist())}
        values[:] = new

    def mask(self, condition: Condition, rows: int) -> Mask:
        if isinstance(condition, Exists):
            values, at = self.present.before(rows)
            return _spread(values, at, rows)
        if isinstance(condition, Within):
            values, at = self.numbers.before(rows)
            low, high = condition.low, condition.high
            fits = values > low if condition.above_low else values >= low
            fits &= values < high if condition.below_high else values <= high
            return _spread(fits, at, rows)
        mask = np.zeros(rows, dtype=np.bool_)
        for part, wanted in self._wanted(condition):
            values, at = part.before(rows)
            fits = values == wanted[0] if len(wanted) == 1 else np.isin(values, wanted)
            mask |= _spread(fits, at, rows, single=part is not self.strings or self.single)
        return mask

    def _wanted(self, condition: OneOf) -> list[tuple[_Values, list[Any]]]:
        """The values looked for, by type; none of a type that has nothing to look for."""
        codes = [self.codes[text] for text in condition.strings if text in self.codes]
        all_of = (
            (self.numbers, list(condition.numbers)),
            (self.booleans, list(condition.booleans)),
            (self.strings, codes),
        )
        return [(part, wanted) for part, wanted in all_of if wanted]


def _spread(
    fits: NDArray[np.bool_], at: NDArray[np.int32], rows: int, *, single: bool = True
) -> Mask:
    """Bool (rows,): the rows (any,) of the values that fit; `single` if no row has two values."""
    if single and at.shape[0] == rows:  # each row has one
        return fits.copy()
    mask = np.zeros(rows, dtype=np.bool_)
    mask[at[fits]] = True
    return mask


class AppendedColumns:
    """Rows with attributes, numbered as they come. Added to by one thread, read by any."""

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return self._rows

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return sum(
            sum(part.nbytes for part in column.parts) + _STRING_BYTES * len(column.codes)
            for column in self._columns.values()
        )

    def extend(self, attributes: Sequence[Row]) -> None:
        """Adds rows with these attributes."""
        new: dict[str, tuple[list[int], list[Any]]] = {}
        for row, own in enumerate(attributes, self._rows):
            for name, value in own.items():
                rows, values = new.setdefault(name, ([], []))
                rows.append(row)
                values.append(value)
        for name, (rows, values) in new.items():
            self._columns.setdefault(name, _Column()).extend(rows, values)
        self._rows += len(attributes)

    def select(self, condition: Filter, rows: int) -> Mask:
        """Bool (rows,): which of the first so many rows match."""

        def matching(one: Condition) -> Mask:
            column = self._columns.get(one.name)
            if column is None:
                return np.zeros(rows, dtype=np.bool_)
            return column.mask(one, rows)

        return select(condition, rows, matching)

    def kept(self, rows: NDArray[np.integer[Any]], used: int) -> "AppendedColumns":
        """Only these rows, ascending, of the first so many, numbered from 0."""
        numbers = np.full(used, -1, dtype=np.int32)
        numbers[rows] = np.arange(rows.shape[0], dtype=np.int32)
        result = AppendedColumns()
        result._rows = int(rows.shape[0])
        for name, column in list(self._columns.items()):  # more may come meanwhile
            moved = _Column()
            moved.present, moved.numbers, moved.booleans, moved.strings = (
                part.renumbered(numbers, used) for part in column.parts
            )
            moved.recode(column.codes)
            moved.single = column.single
            if len(moved.present.rows):
                result._columns[name] = moved
        return result
