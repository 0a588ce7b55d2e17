"""Files of embeddings, read in batches: Parquet, `.npz`, JSON. The first bytes say which it is.

None is ever in memory as a whole. A row that cannot be read comes out as a `BadRow`; whether the
others hold is `core.usecases.embeddings`' to say.
"""

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self

import pyarrow as pa

from core.settings import Files
from deploy.data.formats.file_input import NPY, PARQUET, ZIP, FileInput, open_input
from deploy.data.formats.json_embeddings import JsonRows
from deploy.data.formats.npz import NpzRows, not_npz
from deploy.data.formats.parquet import ParquetRows
from deploy.data.formats.rows import Batch, Columns, RowReader
from deploy.errors import CommandError

_FAULTS: Final = (
    *(OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError, MemoryError),
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What damaged bytes raise in the libraries; NotImplementedError is a RuntimeError."""
_RANDOM_ACCESS: Final[dict[str, Callable[[BinaryIO, str, Columns, Files], RowReader]]] = {
    PARQUET: ParquetRows,
    ZIP: NpzRows,
}


class Source:
    """An opened file; it is closed at the end of its block."""

    def __init__(self, name: str, short_name: str, reader: RowReader) -> None:
        self.name = name
        """For messages."""
        self.short_name = short_name
        """The same without directories."""
        self._reader = reader
        self.units = reader.units
        """All there is: rows, or bytes where rows cannot be counted; None where nobody knows."""
        self.unit = reader.unit

    @property
    def notes(self) -> list[str]:
        """What was converted, a sentence each; complete when all batches are read."""
        return self._reader.notes

    def batches(self, rows_max: int) -> Iterator[Batch]:
        """The file in batches of up to `rows_max` rows, from its start; a pipe only once.

        Raises:
            CommandError: when the file as a whole does not read from some point on.
        """
        try:
            yield from self._reader.batches(rows_max)
        except _FAULTS as error:
            raise _damaged(self.name, error) from error

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(path: Path, columns: Columns = Columns(), limits: Files = Files()) -> Source:  # noqa: B008 - frozen
    """Opens a file without reading its rows; `-` is standard input.

    Args:
        path: The file, a pipe too: Parquet and npz are spooled to a temporary file then.
        columns: Other names than `product_id` and `vector`.
        limits: On what a file may expand to.

    Raises:
        CommandError: when it is not there, or is none of the three, in one line that says what it
            is instead.
    """
    file = open_input(path, limits)
    try:
        reader = _reader(file, columns, limits)
    except _FAULTS as error:
        file.close()
        raise _damaged(file.name, error) from error
    except BaseException:
        file.close()
        raise
    return Source(file.name, file.short_name, reader)


def _reader(file: FileInput, columns: Columns, limits: Files) -> RowReader:
    if file.format == NPY:
        raise not_npz(file.name)
    make = _RANDOM_ACCESS.get(file.format)
    if make is None:
        return JsonRows(file, columns, limits)
    data = file.path.open("rb") if file.seekable else file.spooled()
    try:
        reader = make(data, file.name, columns, limits)
    except BaseException:
        data.close()
        raise
    file.close()
    return reader


def _damaged(name: str, error: BaseException) -> CommandError:
    why = " ".join(str(error).split()) or type(error).__name__
    return CommandError(f"{name}: does not read: {why}")
