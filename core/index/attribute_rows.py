"""The pulled attributes of a build on disk: the worker writes them, its build process reads them.

Memory use is constant while they are written: ids and texts go to one file, and a record of fixed
size for each to another.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from core.errors import Corrupt
from core.models import StoredAttributes

_TEXTS: Final = "attributes.bin"
_RECORDS: Final = "attribute_records.bin"
_RECORD: Final = np.dtype([("id_bytes", "<u4"), ("text_bytes", "<u4")])
"""For each item in order of arrival: the length of its id, and of its text, which follows it."""


class AttributesWriter:
    """Appends pages of attributes to files in a directory, which is there."""

    def __init__(self, directory: Path) -> None:
        self._texts = (directory / _TEXTS).open("wb")
        self._records = (directory / _RECORDS).open("wb")

    def append(self, page: Sequence[StoredAttributes]) -> None:
        """Adds one page. Later attributes of a product replace its earlier ones."""
        parts = [part.encode() for each in page for part in (each.product_id, each.text)]
        records = np.array([len(part) for part in parts], dtype="<u4").view(_RECORD)
        self._texts.write(b"".join(parts))
        self._records.write(records.tobytes())

    def close(self) -> None:
        """Flushes and closes the files."""
        for file in (self._texts, self._records):
            file.close()


class PulledAttributes:
    """The latest attributes of each product, as texts, mapped from the files."""

    def __init__(self, directory: Path) -> None:
        """Reads what an `AttributesWriter` left, if one did.

        Raises:
            Corrupt: the files do not match, as when their writer was killed.
        """
        self._latest: dict[bytes, int] = {}
        if not (directory / _RECORDS).exists():
            return
        records = np.fromfile(directory / _RECORDS, dtype=_RECORD)
        self._ends = np.cumsum(records.view("<u4"), dtype=np.int64)
        """Of each id and each text, in turns."""
        size = (directory / _TEXTS).stat().st_size
        if size != (int(self._ends[-1]) if records.size else 0):
            raise Corrupt(
                "the files of the pulled attributes do not match: the pull did not finish"
            )
        if not size:
            return
        self._data = np.memmap(directory / _TEXTS, dtype=np.uint8, mode="r").data
        start = 0
        for item, (id_end, text_end) in enumerate(self._ends.reshape(-1, 2).tolist()):
            self._latest[bytes(self._data[start:id_end])] = item
            start = text_end

    def __len__(self) -> int:
        return len(self._latest)

    def text(self, product_id: bytes) -> bytes:
        """The attributes of a product as JSON; empty where it has none."""
        item = self._latest.get(product_id)
        if item is None:
            return b""
        return bytes(self._data[self._ends[2 * item] : self._ends[2 * item + 1]])
