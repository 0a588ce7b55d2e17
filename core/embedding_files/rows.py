"""Rows of embedding files, and what every reader of them has in common."""

import lzma
import uuid
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from core.embedding_files.file_input import FileInput
from core.errors import FileError
from core.models import BadRow

FAULTS: Final = (
    *(OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError, MemoryError),
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What the libraries raise on damaged bytes; NotImplementedError is a RuntimeError."""


_NO_ATTRIBUTES: Final[Mapping[str, Sequence[Any]]] = MappingProxyType({})


class Row(msgspec.Struct, frozen=True):
    """One row that could be read."""

    number: int
    """From 1; in JSON, the line that it begins on."""
    product_id: str
    vector: NDArray[np.float32]
    """float32 (d,); infinite where the file's number is too large."""
    attributes: dict[str, Any] | None = None
    """As they stand in the file, not checked; None where none are read."""


class Batch(msgspec.Struct, frozen=True):
    """Some rows of the file, in order."""

    rows: list[Row]
    bad: list[BadRow]
    units: int
    """How much of the file the batch is, in `EmbeddingReader.units`."""


def batch_of(
    first: int,
    ids: Sequence[str | bytes | None],
    vectors: Sequence[NDArray[np.float32] | str],
    attributes: Mapping[str, Sequence[Any]] = _NO_ATTRIBUTES,
) -> Batch:
    """A batch of consecutive rows.

    Args:
        first: The number of the first row.
        ids: Bytes where an id is not UTF-8, None where it is null.
        vectors: Text where a vector is not valid: why.
        attributes: The values of each attribute; None where a row has none of the name.
    """
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, (product_id, vector) in enumerate(zip(ids, vectors, strict=True), first):
        if not isinstance(product_id, str):
            reason = "is null" if product_id is None else "is not UTF-8"
            bad.append(BadRow(number, None, f"product_id {reason}"))
        elif isinstance(vector, str):
            bad.append(BadRow(number, product_id, f"vector {vector}"))
        else:
            own = {
                name: value
                for name, values in attributes.items()
                if (value := values[number - first]) is not None
            }
            rows.append(Row(number, product_id, vector, own if attributes else None))
    return Batch(rows, bad, len(ids))


class EmbeddingReader(AbstractContextManager["EmbeddingReader"]):
    """An opened file of embeddings, read in batches; closed at the end of its block.

    A row that cannot be read becomes a `BadRow`. Whether a row can be stored is checked later, by
    `core.usecases.embeddings`.
    """

    unit: str
    """Of `units`: `rows`, or `bytes` where rows cannot be counted in advance."""
    units: int | None
    """The size of the whole file; None where it is unknown, as of a pipe."""

    def __init__(self, source: FileInput) -> None:
        self.name = source.name
        """For messages."""
        self.short_name = source.short_name
        """The same without directories."""
        self.notes: list[str] = []
        """Conversions that were made, a sentence each; complete once all batches are read."""

    def batches(self, rows_max: int) -> Iterator[Batch]:
        """The file in batches of up to `rows_max` rows, from its start; a pipe only once.

        Raises:
            FileError: the file cannot be read from some point on.
        """
        try:
            yield from self._batches(rows_max)
        except FAULTS as error:
            raise damaged(self.name, error) from error

    @abstractmethod
    def _batches(self, rows_max: int) -> Iterator[Batch]:
        """The batches; whatever the libraries raise is passed on."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def __exit__(self, *_: object) -> None:
        self.close()


def damaged(name: str, error: BaseException) -> FileError:
    """The error of a file that a library could not read."""
    why = " ".join(str(error).split()) or type(error).__name__
    return FileError(f"{name}: cannot be read: {why}")


def text_of(product_id: object) -> str | None:
    """An id as text, if it is text, an integer or a UUID; else None."""
    if isinstance(product_id, str):
        return product_id
    if isinstance(product_id, int | uuid.UUID) and not isinstance(product_id, bool):
        return str(product_id)
    return None


def decoded(product_id: bytes) -> str | bytes:
    """UTF-8 as text; other bytes as they are."""
    try:
        return product_id.decode()
    except UnicodeDecodeError:
        return product_id


def as_float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as contiguous float32; too large ones become infinite, which validation rejects."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(numbers, dtype=np.float32)
