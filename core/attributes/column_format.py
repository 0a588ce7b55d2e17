"""The layout of the file that has the attributes of a version as typed columns.

A column has the rows that have the attribute, and a part for each type that its values have: its
numbers (sorted, with their rows), its strings (a sorted dictionary, with the rows of each, so that
a list is in several) and the rows of each boolean. A condition costs about as much as it has rows.
Beside them stand the attributes of each row as they were stored, for answers that give them back.

The file is a magic number, the length of a directory, the directory as JSON, and the arrays that it
names, each on a boundary of 8 bytes, all little-endian. The same rows give the same bytes.
"""

from typing import Final, Literal

import msgspec

COLUMNS_MAGIC: Final = b"K9COLS\x00\x01"
HEAD_BYTES: Final = len(COLUMNS_MAGIC) + 8
"""Up to the directory."""
ALIGNMENT: Final = 8
Kind = Literal["rows", "bits", "starts", "floats", "text"]
DTYPES: Final = {"rows": "<i4", "bits": "|u1", "starts": "<i8", "floats": "<f8", "text": "|u1"}
"""What the numbers of an array are, by its kind."""


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One array of the file."""

    kind: Kind
    start: int
    """In bytes, from the end of the directory."""
    count: int


class Numbers(msgspec.Struct, frozen=True):
    """The numbers of an attribute."""

    values: Part
    """float64, ascending."""
    rows: Part
    """The row of each."""


class Strings(msgspec.Struct, frozen=True):
    """The strings of an attribute, those in lists too."""

    text: Part
    """UTF-8 of the different strings, ascending, one after the other."""
    text_starts: Part
    """Where each begins, and the last ends."""
    row_starts: Part
    """Where the rows of each begin, and those of the last end."""
    rows: Part
    """Ascending for each string."""


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attribute. A set of rows is their numbers or a bit for each row, whichever is smaller."""

    present: Part
    """The rows that have it."""
    true: Part | None = None
    false: Part | None = None
    numbers: Numbers | None = None
    strings: Strings | None = None


class Texts(msgspec.Struct, frozen=True):
    """The attributes of each row as JSON, as `canonical_text` writes them."""

    text: Part
    """One after the other; nothing for a row without any."""
    starts: Part
    """Where each begins, and the last ends."""


class Directory(msgspec.Struct, frozen=True):
    """What the file has."""

    rows: int
    """Of the version."""
    texts: Texts
    columns: dict[str, Column]
