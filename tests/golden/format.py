"""A stored format, and its golden files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from core.dynamo.wire import Item, RequestItem

T = TypeVar("T")

FILES: Final = Path(__file__).with_name("formats")


@dataclass(frozen=True)
class Format(Generic[T]):
    """One format: a sample, what is written of it, and what is read of that."""

    name: str
    suffix: str
    sample: T
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]
    written: bool = True
    """False where only earlier releases wrote it."""

    def files(self) -> list[Path]:
        """Its golden files, oldest first."""
        found = FILES.glob(f"{self.name}-[0-9]*.{self.suffix}")
        return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]))

    def next_file(self) -> Path:
        """The one to write once the format changes."""
        return FILES / f"{self.name}-{len(self.files()) + 1}.{self.suffix}"


def text(item: Any) -> bytes:
    """JSON on lines, its names in order."""
    return msgspec.json.format(msgspec.json.encode(item, order="sorted"), indent=1) + b"\n"


def row(
    name: str,
    sample: T,
    encode: Callable[[T], RequestItem],
    decode: Callable[[Item], T],
    *,
    written: bool = True,
) -> Format[T]:
    """A row of a table."""
    return Format(
        name,
        "json",
        sample,
        lambda struct: text(encode(struct)),
        lambda data: decode(msgspec.json.decode(data, type=Item)),
        written,
    )
