"""Opens a path, a pipe or standard input, and decodes gzip, UTF-16 and UTF-32.

The format is detected from the first bytes, not from the name. A compressed file is read as a
stream, and rejected once it expands further than the settings allow.
"""

import codecs
import gzip
import io
import os
import stat
import tempfile
import zlib
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from core.errors import FileError
from core.settings import Files

STANDARD_INPUT: Final = Path("/dev/stdin")
BLOCK_BYTES: Final = 1024 * 1024
FREE_BYTES: Final = 64 * 1024 * 1024
"""Up to this size a file may expand at any ratio."""
_HEAD_BYTES: Final = 4096
_GZIP: Final = b"\x1f\x8b"

PARQUET, ZIP, NPY, TEXT = "a Parquet file", "a zip archive", "an .npy file", "text"
_FORMATS: Final = (
    (b"PAR1", PARQUET),
    (b"PARE", "an encrypted Parquet file"),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"\x93NUMPY", NPY),
    (b"ARROW1", "an Arrow (Feather) file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd (gzip is read)"),
    (b"BZh", "compressed with bzip2 (gzip is read)"),
    (b"\xfd7zXZ\x00", "compressed with xz (gzip is read)"),
    (b"\x04\x22\x4d\x18", "compressed with lz4 (gzip is read)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\xe0\x01\x00\xea", "Amazon Ion (export it as DYNAMODB_JSON)"),
    (b"$ion_1_0", "Amazon Ion (export it as DYNAMODB_JSON)"),
    (b"\xd0\xcf\x11\xe0", "an Excel file"),
    (b"%PDF", "a PDF file"),
    (b"GGUF", "a GGUF file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    *((b"\x80%c" % version, "a Python pickle, which K9 never reads") for version in range(2, 6)),
    *((magic, "a FAISS index") for magic in (b"IxF2", b"IxFI", b"IxFl", b"IHNf", b"IwFl", b"IxMp")),
)
_TAR_AT, _TAR = 257, b"ustar"
_ENCODINGS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose BOM is a prefix of it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class _Readable(io.RawIOBase):
    def readable(self) -> bool:
        return True


class _Counted(_Readable):
    """Counts the bytes read from a file, and fills each buffer whole, also from a slow pipe."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self.position = 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer
        view = memoryview(buffer)
        filled = 0
        while filled < len(view) and (size := self._file.readinto(view[filled:])):
            filled += size
        self.position += filled
        return filled


class _Expanded(_Readable):
    """Decodes a gzip stream, within the limits."""

    def __init__(self, source: BinaryIO, counted: _Counted, name: str, limits: Files) -> None:
        self._decoder = gzip.GzipFile(fileobj=source, mode="rb")
        self._counted = counted
        self._name = name
        self._limits = limits
        self._decoded = 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer
        try:
            size = self._decoder.readinto(buffer)
        except (EOFError, OSError, zlib.error) as error:
            raise FileError(f"{self._name}: its gzip data is damaged or truncated") from error
        self._decoded += size
        problem = expansion_problem(self._counted.position, self._decoded, self._limits)
        if problem:
            raise FileError(f"{self._name}: {problem}")
        return size


class _Transcoded(_Readable):
    """Converts text of another encoding to UTF-8."""

    def __init__(self, source: BinaryIO, encoding: str, name: str) -> None:
        # A lone surrogate becomes invalid UTF-8, which is then reported for its row alone.
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._source = source
        self._encoding = encoding.upper()[:6]
        self._name = name
        self._ready = b""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer
        while not self._ready:
            block = self._source.read(BLOCK_BYTES)
            try:
                text = self._decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise FileError(f"{self._name}: is not valid {self._encoding}") from error
            self._ready = text.encode("utf-8", "surrogatepass")
            if not block and not self._ready:
                return 0
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


class FileInput(AbstractContextManager["FileInput"]):
    """An opened file. `stream` has its bytes: decompressed, and text as UTF-8 without a BOM."""

    def __init__(self, path: Path, limits: Files, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        """For messages."""
        self.short_name = path.name
        """The same without directories."""
        if str(path) in {"-", str(STANDARD_INPUT)}:
            self.name = self.short_name = "standard input"
        self._limits = limits
        self._stack = ExitStack()
        try:
            self._open()
        except OSError as error:
            self.close()
            raise FileError(f"{self.name}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        raw = self._stack.enter_context(_system_path(self.path).open("rb", buffering=0))
        if os.isatty(raw.fileno()):
            raise FileError(f"{self.name}: is a terminal; redirect a file or a pipe to it")
        status = os.fstat(raw.fileno())
        regular = stat.S_ISREG(status.st_mode)
        self.size = status.st_size if regular else None
        """Size of the file, compressed if it is; None for a pipe."""
        self._counted = _Counted(raw)
        stream = self._buffered(self._counted)
        self.compressed = stream.peek(2)[:2] == _GZIP
        if self.compressed:
            expanded = _Expanded(stream, self._counted, self.name, self._limits)
            stream = self._buffered(expanded)
        self.seekable = regular and not self.compressed
        """Whether `path` can be opened again and read at any offset."""
        head = stream.peek(_HEAD_BYTES)
        self.format = _format(head)
        """PARQUET, ZIP, NPY or TEXT, else the name of another format; empty for an empty file."""
        if self.format == TEXT:
            bom, encoding = _encoding(head)
            stream.read(len(bom))
            if encoding != "utf-8":
                stream = self._buffered(_Transcoded(stream, encoding, self.name))
        self.stream = stream

    def _buffered(self, raw: io.RawIOBase) -> io.BufferedReader:
        return self._stack.enter_context(io.BufferedReader(raw, BLOCK_BYTES))

    @property
    def position(self) -> int:
        """Bytes of the file, compressed if it is, that have been read."""
        return self._counted.position

    def spooled(self) -> BinaryIO:
        """Copies `stream` to a temporary file, for formats that need random access.

        Raises:
            FileError: it is larger than the limit, or the disk is full.
        """
        try:
            with ExitStack() as stack:
                # The caller closes it, which deletes it.
                spool = stack.enter_context(tempfile.TemporaryFile(prefix="k9-"))
                self._spool(spool)
                spool.seek(0)
                stack.pop_all()
                return spool
        except OSError as error:
            problem = f"cannot be spooled to a temporary file: {error.strerror}"
            raise FileError(f"{self.name}: {problem}") from error

    def _spool(self, spool: BinaryIO) -> None:
        bytes_max, size = self._limits.file_spool_bytes_max, 0
        while block := self.stream.read(BLOCK_BYTES):
            size += len(block)
            if size > bytes_max:
                raise FileError(
                    f"{self.name}: has more than {bytes_max:,} bytes, the most that is spooled to "
                    "a temporary file: name an uncompressed file, or set K9_FILE_SPOOL_BYTES_MAX"
                )
            spool.write(block)

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def open_input(path: Path, limits: Files, name: str | None = None) -> FileInput:
    """Opens a file or pipe; `-` is standard input. In messages it is `name`, if that is given.

    Raises:
        FileError: it does not exist, is empty, or cannot be read.
    """
    file = FileInput(path, limits, name)
    if not file.format:
        file.close()
        raise FileError(f"{file.name}: is empty")
    return file


def _system_path(path: Path) -> Path:
    if str(path) == "-":
        return STANDARD_INPUT
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileError(f"{path}: there is no such file") from None
    if stat.S_ISDIR(mode):
        raise FileError(
            f"{path}: is a directory; name one file in it, or join gzip files and JSON lines by "
            f"`cat {path}/* | k9 … -`"
        )
    return path


def expansion_problem(compressed: int, decoded: int, limits: Files) -> str | None:
    """Why data that has expanded this far is rejected; None if it is not."""
    if decoded > limits.file_decoded_bytes_max:
        return (
            f"decodes to more than {limits.file_decoded_bytes_max:,} bytes "
            "(K9_FILE_DECODED_BYTES_MAX)"
        )
    if decoded > FREE_BYTES and decoded > limits.file_expansion_max * compressed:
        return (
            f"expands to more than {limits.file_expansion_max:,} times its compressed size, as "
            "no file of rows does (K9_FILE_EXPANSION_MAX)"
        )
    return None


def _format(head: bytes) -> str:
    if not head:
        return ""
    for magic, name in _FORMATS:
        if head.startswith(magic):
            return name
    if head[_TAR_AT:].startswith(_TAR):
        return "a tar archive"
    if head.startswith(_GZIP):
        return "gzip within gzip (decompress it once)"
    return TEXT


def _encoding(head: bytes) -> tuple[bytes, str]:
    """The byte order mark and the encoding of text that begins with `head`."""
    for bom, encoding in _ENCODINGS:
        if head.startswith(bom):
            return bom, encoding
    # Without a BOM: JSON begins with two ASCII characters.
    if head[1:2] == b"\0" and head[:1] != b"\0":
        return b"", "utf-32-le" if head[2:4] == b"\0\0" else "utf-16-le"
    if head[:1] == b"\0":
        return b"", "utf-32-be" if head[1:2] == b"\0" else "utf-16-be"
    return b"", "utf-8"
