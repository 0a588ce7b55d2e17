"""The rows of an import that are not valid: all in a file, the first ones in memory."""

from pathlib import Path
from typing import Final, Self

import msgspec

from core.limits import BAD_ROWS_MAX
from core.models import BadRow

_REASON_BYTES_MAX: Final = 200
_ID_BYTES_MAX: Final = 100
_FIRST_BYTES_MAX: Final = 300_000
"""Of the first rows as JSON: an item of DynamoDB has up to 400 KB."""


class BadRows:
    """Takes bad rows in the order of the file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self.path = path
        self.count = 0
        self.first: list[BadRow] = []
        """The first rows, with long ids and reasons cut."""
        self._first_bytes = 0

    def add(self, rows: list[BadRow]) -> None:
        """Takes the bad rows of the next batch."""
        for each in rows:
            product_id = each.product_id and _unicode(each.product_id)
            row = BadRow(each.number, product_id, _unicode(each.reason))
            self._file.write(msgspec.json.encode(row) + b"\n")
            if len(self.first) == self.count < BAD_ROWS_MAX:
                self._keep(row)
            self.count += 1

    def _keep(self, row: BadRow) -> None:
        product_id = None if row.product_id is None else cut(row.product_id, _ID_BYTES_MAX)
        short = BadRow(row.number, product_id, cut(row.reason, _REASON_BYTES_MAX))
        self._first_bytes += len(msgspec.json.encode(short))
        if self._first_bytes <= _FIRST_BYTES_MAX:
            self.first.append(short)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def flush(self) -> None:
        """Has the file hold all of them, if it is not closed, when it does."""
        if not self._file.closed:
            self._file.flush()


def _unicode(text: str) -> str:
    """Text with lone surrogates, which arrays of numpy may have, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def cut(text: str, bytes_max: int) -> str:
    """Text of at most so many bytes, and a mark where some were left out."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= bytes_max else data[:bytes_max].decode("utf-8", "ignore") + "…"
