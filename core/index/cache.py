"""Index versions on the local disk: complete or absent, and never removed while in use."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from core.errors import Corrupt, NewerFormat
from core.files import file_lock
from core.index import files
from core.index.manifest import MANIFEST, FileInfo, decode_manifest

LEASE: Final = ".lease"
"""A file in each version directory, locked by every process that uses the version."""
_ABANDONED_S: Final = 3600.0


@contextmanager
def leased(directory: Path) -> Iterator[None]:
    """Keeps every process on this machine from removing a directory."""
    with file_lock(directory / LEASE, shared=True):
        yield


def move_into_place(incoming: Path, directory: Path) -> None:
    """Moves a complete version to its directory; another process may have been faster."""
    try:
        incoming.rename(directory)
    except OSError:
        if not (directory / MANIFEST).exists():
            raise


def adopt(early: Path, directory: Path) -> None:
    """Moves a version from the directory that an earlier release used, if it is there."""
    if directory.exists() or not early.exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # another process was faster
        move_into_place(early, directory)


def remove(directory: Path) -> None:
    """Removes a version atomically, so that no part of it is found under its name."""
    removed = directory.with_name(f".{directory.name}.{uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was faster
        directory.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def others(current: Path) -> list[Path]:
    """The other versions of the model version, the newest first."""
    if not current.parent.exists():
        return []
    found = [
        directory
        for directory in current.parent.glob("[!.]*.*")
        if directory != current and directory.name.rpartition(".")[2].isdecimal()
    ]
    return sorted(found, key=_modified_at, reverse=True)


def copy_same(directory: Path, incoming: Path, wanted: Mapping[str, FileInfo]) -> set[str]:
    """Copies files of a new version from other versions of the model version that have the same.

    They are copies, not links, so that damage to one version leaves the others whole. Each is
    verified. What is not found so, for whatever reason, is to be downloaded.

    Args:
        directory: Where the new version will be.
        incoming: Where its files are put before.
        wanted: Its files.

    Returns:
        The names of those that are there now.
    """
    copied: set[str] = set()
    for other in others(directory):
        try:
            has = decode_manifest((other / MANIFEST).read_bytes()).files
        except (OSError, Corrupt, NewerFormat):
            continue
        for name in wanted.keys() - copied:
            same = name in has and has[name].sha256 == wanted[name].sha256
            if same and _copy(other / name, incoming / name, wanted[name]):
                copied.add(name)
    return copied


def _copy(source: Path, target: Path, wanted: FileInfo) -> bool:
    """Whether the file could be copied, and has the bytes that it should have."""
    with suppress(OSError):  # it was removed just now, or the disk is full
        shutil.copyfile(source, target)
        found = files.file_info(target)
        if (found.bytes, found.sha256) == (wanted.bytes, wanted.sha256):
            return True
    target.unlink(missing_ok=True)
    return False


def prune(current: Path, fallbacks: int) -> None:
    """Removes all but the current version, `fallbacks` others of the same data, and leased ones."""
    if not current.parent.exists():
        return
    _remove_abandoned(current.parent)
    data = _data(current)
    for directory in others(current):
        if fallbacks > 0 and _data(directory) == data:
            fallbacks -= 1
        else:
            _remove_unless_leased(directory)


def clear(directory: Path) -> bool:
    """Removes the unleased versions of a model version; True if none is left."""
    _remove_abandoned(directory)
    for version in others(directory / "none"):
        _remove_unless_leased(version)
    with suppress(OSError):  # another process may be putting one there
        directory.rmdir()
    return not directory.exists()


def _remove_abandoned(directory: Path) -> None:
    """Removes downloads of processes that died in them, by their age."""
    for incoming in directory.glob(".*"):
        with suppress(FileNotFoundError):
            if time.time() - incoming.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(incoming, ignore_errors=True)


def _data(directory: Path) -> tuple[int, int] | None:
    """Generation and epoch of a version; None if its manifest cannot be read."""
    try:
        return decode_manifest((directory / MANIFEST).read_bytes()).data
    except (OSError, Corrupt, NewerFormat):
        return None


def _modified_at(directory: Path) -> float:
    try:
        return (directory / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_unless_leased(directory: Path) -> None:
    # A process may have it mapped, or have removed it.
    with suppress(BlockingIOError, FileNotFoundError), file_lock(directory / LEASE):
        remove(directory)
