"""Local files, also on their way to and from S3: blocking work, for threads."""

import fcntl
import hashlib
import os
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import msgspec

from core.errors import Corrupt


class ObjectHead(msgspec.Struct, frozen=True):
    """What a HeadObject request says of an object."""

    size_bytes: int
    sha256_hex: str | None
    """From its metadata; None where something other than K9 put it."""
    checksum: str | None = None
    """As S3 itself has it: `files.checksum`; None where it was put without one."""
    etag: str | None = None


def size_and_digest(source: Path | bytes) -> tuple[int, str]:
    """Bytes of a file or of bytes, and their SHA-256 in hex."""
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def read_part(source: Path | bytes, offset: int, length: int) -> tuple[bytes, str]:
    """Up to `length` bytes from `offset` on, and their SHA-256 in base64, as S3 has it."""
    if isinstance(source, bytes):
        part = source[offset : offset + length]
    else:
        with source.open("rb") as file:
            file.seek(offset)
            part = file.read(length)
    return part, b64encode(hashlib.sha256(part).digest()).decode()


def checksum(path: Path, part_bytes: int) -> str:
    """The SHA-256 of a file as S3 has it in base64: of its parts' digests where it has several."""
    size = path.stat().st_size
    if size <= part_bytes:
        return read_part(path, 0, size)[1]
    offsets = range(0, size, part_bytes)
    digests = b"".join(b64decode(read_part(path, offset, part_bytes)[1]) for offset in offsets)
    return f"{read_part(digests, 0, len(digests))[1]}-{len(offsets)}"


def create_file(path: Path) -> int:
    """Creates a file, open for reading and writing, with mode 0600.

    Raises:
        FileExistsError: it exists.
    """
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)


def write_at(handle: int, data: bytes, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written


def verify_and_rename(handle: int, partial: Path, path: Path, sha256_hex: str) -> None:
    """Verifies an open file, syncs it, and gives it its final name.

    Raises:
        Corrupt: it does not have this digest.
    """
    if size_and_digest(partial)[1] != sha256_hex:
        raise Corrupt(f"{path.name} does not have the expected SHA-256")
    os.fsync(handle)
    partial.rename(path)


def discard(handle: int, partial: Path) -> None:
    """Closes a file, and removes it if it still has its temporary name."""
    os.close(handle)
    partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file: readers, and a crash, see either the old bytes or the new ones.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.part")
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def file_lock(path: Path, *, shared: bool = False, create: bool = True) -> Iterator[int]:
    """Locks a file against other processes until the end of the block, and yields its handle.

    The system releases the lock when the process ends, so a crash leaves none behind. A shared lock
    waits while another process holds the exclusive one; an exclusive lock does not wait.

    Raises:
        BlockingIOError: another process holds a lock on the file.
        FileNotFoundError: the file is missing, and `create` is False.
    """
    flags = (os.O_RDONLY if shared else os.O_RDWR) | (os.O_CREAT if create else 0) | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)
