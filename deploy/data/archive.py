"""A backup's files: items as lines of DynamoDB's JSON, compressed, and a manifest written last.

manifest.json            what the backup has, with the SHA-256 of each file and its own
users.000.jsonl.gz       items of a table; a segment without items has no file
incomplete               in a directory, until the backup is complete; its writer holds a lock on it
"""

import gzip
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from core.dynamo.wire import AttributeValue, Item
from core.embedding_files.file_input import open_input
from core.errors import NewerFormat
from core.files import file_lock, size_and_digest, write_atomically
from core.formats import check_format
from core.settings import Files
from deploy.errors import CommandError

MANIFEST: Final = "manifest.json"
INCOMPLETE: Final = "incomplete"
FORMAT: Final = 1
_OWN_FILE: Final = re.compile(
    r"[a-z]+\.\d{3,6}\.jsonl\.gz|manifest\.json\.new|\.manifest\.json\..*|incomplete"
)
_COMPRESSION_LEVEL: Final = 1
"""Vectors do not compress; all else is small."""
_EXPLANATION: Final = b"An interrupted backup: `k9 backup` into this directory starts over.\n"

MANIFEST_BYTES_MAX: Final = 16 * 1024 * 1024
"""A manifest has an entry of some 200 bytes for each file."""
_LINE_BYTES_MAX: Final = 16 * 1024 * 1024
"""An item has up to 400 KB, which in DynamoDB's JSON may take more than ten times as much."""

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(dict[str, AttributeValue])


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a table."""

    name: str
    items: int
    bytes: int
    sha256: str
    """In hex, of the compressed file."""


class TableEntry(msgspec.Struct, frozen=True):
    """One table."""

    table: str
    """Its full name in the environment that was backed up."""
    items: int
    files: list[FileEntry]


class Manifest(msgspec.Struct, frozen=True):
    """The contents of a backup."""

    k9_version: str
    environment: str
    began_at: str
    """Rows written before it are in the backup, rows written after `ended_at` are not."""
    ended_at: str
    tables: dict[str, TableEntry]
    """By short name: `users`."""
    sha256: str = ""
    """Of this manifest's encoding without this field."""
    format: int = FORMAT

    @property
    def items(self) -> int:
        """Of all tables."""
        return sum(table.items for table in self.tables.values())

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for table in self.tables.values() for file in table.files)

    def sealed(self) -> "Manifest":
        """The manifest with its own digest."""
        bare = msgspec.structs.replace(self, sha256="")
        digest = hashlib.sha256(_ENCODER.encode(bare)).hexdigest()
        return msgspec.structs.replace(self, sha256=digest)


class _Formatted(msgspec.Struct):
    """What is read of a manifest before anything else."""

    format: int = FORMAT


_FORMATTED: Final = msgspec.json.Decoder(_Formatted)
_MANIFEST: Final = msgspec.json.Decoder(Manifest)


class SegmentFile:
    """The file of one segment, created with its first item. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw: BinaryIO | None = None
        self._file: gzip.GzipFile | None = None
        self._items = 0

    def write(self, items: list[Item]) -> None:
        """Appends items."""
        if not items:
            return
        if self._file is None:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            self._raw = os.fdopen(handle, "wb")
            self._file = gzip.GzipFile(
                filename="", mode="wb", fileobj=self._raw, compresslevel=_COMPRESSION_LEVEL, mtime=0
            )
        self._file.write(_ENCODER.encode_lines(items))
        self._items += len(items)

    @property
    def bytes(self) -> int:
        """How much of it has reached the disk."""
        return 0 if self._raw is None else self._raw.tell()

    def close(self) -> FileEntry | None:
        """Flushes the file to the disk. Returns its entry, or None if there was no item."""
        if self._file is None or self._raw is None:
            return None
        self._file.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()
        size, digest = size_and_digest(self._path)
        return FileEntry(self._path.name, self._items, size, digest)

    def abandon(self) -> None:
        """Closes the file as it is, after a failure; a closed file is not affected."""
        if self._file is not None and self._raw is not None and not self._raw.closed:
            self._file.close()
            self._raw.close()


@contextmanager
def open_backup(directory: Path) -> Iterator[None]:
    """Locks an empty directory for a new backup, and creates it where it is missing.

    What an interrupted backup left there is removed first. If the block fails, its files stay.

    Raises:
        CommandError: it is not empty, another backup writes to it, or it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = sorted(path.name for path in directory.iterdir())
        foreign = [name for name in names if not _OWN_FILE.fullmatch(name)]
        if foreign or (names and INCOMPLETE not in names):
            raise CommandError(f"{directory}: is not empty ({(foreign or names)[0]!r}, …)")
        with file_lock(directory / INCOMPLETE):
            for name in names:
                if name != INCOMPLETE:
                    (directory / name).unlink()
            (directory / INCOMPLETE).write_bytes(_EXPLANATION)
            yield
    except BlockingIOError:
        raise CommandError(f"{directory}: another backup is writing there") from None
    except OSError as error:
        raise CommandError(f"{directory}: {error.strerror or error}") from error


def encode_manifest(manifest: Manifest) -> tuple[Manifest, bytes]:
    """The manifest with its own digest, and its text."""
    sealed = manifest.sealed()
    return sealed, msgspec.json.format(_ENCODER.encode(sealed), indent=1) + b"\n"


def finish(directory: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest, whole or not at all, which completes the backup."""
    sealed, data = encode_manifest(manifest)
    write_atomically(directory / MANIFEST, data)
    (directory / INCOMPLETE).unlink()
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return sealed


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a backup in a directory.

    Raises:
        CommandError: there is none, or it is not valid.
    """
    try:
        with (directory / MANIFEST).open("rb") as file:
            data = file.read(MANIFEST_BYTES_MAX + 1)
    except FileNotFoundError:
        interrupted = (directory / INCOMPLETE).exists()
        why = "has an interrupted backup" if interrupted else f"has no backup ({MANIFEST})"
        raise CommandError(f"{directory}: {why}") from None
    except OSError as error:
        raise CommandError(f"{directory}: {error.strerror}") from error
    if len(data) > MANIFEST_BYTES_MAX:
        raise CommandError(f"{directory / MANIFEST}: has more than {MANIFEST_BYTES_MAX:,} bytes")
    return decode_manifest(data, str(directory / MANIFEST))


def decode_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in a text that was read from `where`.

    Raises:
        CommandError: it is not valid, or was changed.
    """
    try:
        check_format(_FORMATTED.decode(data).format, FORMAT, MANIFEST)
        manifest = _MANIFEST.decode(data)
    except NewerFormat as error:
        raise CommandError(f"{where}: {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"{where}: is not valid: {error}") from None
    if manifest.sealed() != manifest:
        raise CommandError(f"{where}: was changed: its SHA-256 does not match")
    return manifest


def is_own_name(name: str) -> bool:
    """Whether a file of this name may be part of a backup: never one of another directory."""
    return _OWN_FILE.fullmatch(name) is not None


def check_file(directory: Path, file: FileEntry, limits: Files) -> None:
    """Verifies the size, the SHA-256 and the number of items of a file.

    Raises:
        CommandError: it is missing or damaged, or expands as no backup does; it is named.
    """
    path = directory / file.name
    if not is_own_name(file.name) or not path.is_file():
        raise CommandError(f"{path}: is missing")
    if size_and_digest(path) != (file.bytes, file.sha256):
        raise CommandError(f"{path}: is damaged: its SHA-256 is not that in the manifest")
    for _ in _lines(path, file, limits):
        pass


def read_file(
    directory: Path, file: FileEntry, block_items: int, limits: Files
) -> Iterator[list[Item]]:
    """The items of a file, in blocks of up to `block_items`, and fewer where they are large.

    Raises:
        CommandError: it cannot be read, or has another number of items than it should.
    """
    path = directory / file.name
    block: list[Item] = []
    block_bytes = 0
    for line in _lines(path, file, limits):
        try:
            block.append(_DECODER.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CommandError(f"{path}: cannot be read: {error}") from error
        block_bytes += len(line)
        if len(block) == block_items or block_bytes > _LINE_BYTES_MAX:
            yield block
            block, block_bytes = [], 0
    if block:
        yield block


def _lines(path: Path, file: FileEntry, limits: Files) -> Iterator[bytes]:
    """The lines of a file, one per item.

    Raises:
        CommandError: there are more or fewer than the manifest says, or one is too long.
    """
    count = 0
    with open_input(path, limits) as opened:
        while line := opened.stream.readline(_LINE_BYTES_MAX + 1):
            if len(line) > _LINE_BYTES_MAX:
                limit = f"{_LINE_BYTES_MAX:,} bytes, more than any DynamoDB item"
                raise CommandError(f"{path}: line {count + 1} is longer than {limit}")
            count += 1
            yield line
    if count != file.items:
        raise CommandError(f"{path}: has {count} items, and should have {file.items}")
