"""Opens files of embeddings: Parquet, `.npz` or JSON, which their first bytes tell."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from core.embedding_files.columns import Columns
from core.embedding_files.file_input import NPY, PARQUET, ZIP, FileInput, open_input
from core.embedding_files.json_embeddings import JsonReader
from core.embedding_files.npz import NpzReader, npy_error
from core.embedding_files.parquet import ParquetReader
from core.embedding_files.rows import FAULTS, EmbeddingReader, damaged
from core.settings import Files

_SEEKING: Final[dict[str, Callable[[BinaryIO, FileInput, Columns, Files], EmbeddingReader]]] = {
    PARQUET: ParquetReader,
    ZIP: NpzReader,
}


def open_embeddings(
    path: Path,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    limits: Files = Files(),  # noqa: B008 - frozen
    name: str | None = None,
) -> EmbeddingReader:
    """Opens a file without reading its rows. No file is ever in memory as a whole.

    Args:
        path: The file, or `-` for standard input. Parquet and npz from a pipe are spooled to a
            temporary file.
        columns: Other names than `product_id` and `vector`.
        limits: On the size and the expansion of a file.
        name: What messages call it; None: its path.

    Raises:
        FileError: it does not exist, or is in another format, which the message names.
    """
    source = open_input(path, limits, name)
    try:
        return _reader(source, columns, limits)
    except FAULTS as error:
        source.close()
        raise damaged(source.name, error) from error
    except BaseException:
        source.close()
        raise


def _reader(source: FileInput, columns: Columns, limits: Files) -> EmbeddingReader:
    if source.format == NPY:
        raise npy_error(source.name)
    make = _SEEKING.get(source.format)
    if make is None:
        return JsonReader(source, columns, limits)
    data = source.path.open("rb") if source.seekable else source.spooled()
    try:
        reader = make(data, source, columns, limits)
    except BaseException:
        data.close()
        raise
    source.close()
    return reader
