"""Where backups are: a directory, or a prefix of a bucket that holds one after another.

In a bucket nothing is ever replaced: each backup has a name of its own, and its manifest, put last,
makes it one. What an interrupted backup leaves there has no manifest, and is never restored.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

import msgspec

from core.errors import Corrupt, NotFound
from core.object_store import ObjectStore, open_object_store
from core.settings import Settings
from deploy.data import archive
from deploy.data.archive import MANIFEST, FileEntry, Manifest
from deploy.errors import CommandError

_SCHEME: Final = "s3://"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.*'()=-]+(/[A-Za-z0-9!_.*'()=-]+)*", re.ASCII)
_ABOUT: Final = "about.txt"
_EXPLANATION: Final = b"A backup of K9's tables. It is complete once it has manifest.json.\n"
_INDEX_PREFIXES: Final = ("environments", "indexes")
"""Prefixes below which K9 keeps index versions, and removes what it does not need."""


class S3Location(msgspec.Struct, frozen=True):
    """A prefix of a bucket."""

    bucket: str
    prefix: str = ""
    """Without a slash at its end; empty: the whole bucket."""

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """The key of an object below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def below(self, name: str) -> "S3Location":
        """The location of this name in it."""
        return S3Location(self.bucket, self.key(name))


Place = Path | S3Location


def parse_place(text: str) -> Place:
    """A directory, or the location of an `s3://BUCKET/PREFIX`.

    Raises:
        CommandError: it is an address, and no location for backups.
    """
    if not text:
        raise CommandError(
            "the place of the backup is empty: name a directory, or s3://BUCKET/PREFIX"
        )
    scheme, colon, _ = text.partition(":/")
    if colon and scheme.isalnum() and not text.startswith(_SCHEME):
        raise CommandError(f"{text}: backups are in a directory, or below s3://BUCKET/PREFIX")
    if not text.startswith(_SCHEME):
        return Path(text)
    bucket, _, prefix = text.removeprefix(_SCHEME).partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise CommandError(f"{text}: {bucket!r} is no name of a bucket: write s3://BUCKET/PREFIX")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise CommandError(f"{text}: the prefix may have A-Z a-z 0-9 ! _ . * ' ( ) = - and /")
    if prefix.partition("/")[0] in _INDEX_PREFIXES:
        raise CommandError(f"{text}: K9 keeps its indexes there; choose another prefix")
    return S3Location(bucket, prefix)


# --- writing --------------------------------------------------------------------------------------


class BackupWriter(Protocol):
    """Takes the files of one backup."""

    place: Place
    """Where the backup will be."""
    directory: Path
    """Where its files are written, one after another per segment."""

    async def add(self, entry: FileEntry) -> None:
        """Takes a file that has been written and closed."""

    async def finish(self, manifest: Manifest) -> Manifest:
        """Completes the backup; the manifest with its digest."""


class _DirectoryWriter:
    def __init__(self, directory: Path) -> None:
        self.place: Place = directory
        self.directory = directory

    async def add(self, entry: FileEntry) -> None:
        """Does nothing: the file is in the backup's directory already."""

    async def finish(self, manifest: Manifest) -> Manifest:
        return await asyncio.to_thread(archive.finish, self.directory, manifest)


class _BucketWriter:
    def __init__(self, objects: ObjectStore, location: S3Location, directory: Path) -> None:
        self._objects = objects
        self._location = location
        self.place: Place = location
        self.directory = directory

    async def add(self, entry: FileEntry) -> None:
        """Uploads the file, which S3 verifies by its checksum, and removes it from the disk."""
        path = self.directory / entry.name
        await self._objects.put(self._location.key(entry.name), path, entry.sha256)
        path.unlink()

    async def finish(self, manifest: Manifest) -> Manifest:
        sealed, data = archive.encode_manifest(manifest)
        await self._objects.put(self._location.key(MANIFEST), data)
        return sealed


@asynccontextmanager
async def open_writer(
    place: Place, settings: Settings, began: datetime
) -> AsyncIterator[BackupWriter]:
    """A writer of a new backup at a place.

    Raises:
        CommandError: a directory is not empty, another backup writes to it, or it cannot be used.
        Unavailable: S3 did not take a file.
    """
    if isinstance(place, Path):
        with archive.open_backup(place):
            yield _DirectoryWriter(place)
        return
    name = f"{settings.environment}-{began:%Y%m%dT%H%M%SZ}-{uuid4().hex[:8]}"
    async with _open_objects(place, settings) as objects:
        location = place.below(name)
        # Shows that the bucket can be written before the tables are read.
        await objects.put(location.key(_ABOUT), _EXPLANATION)
        with tempfile.TemporaryDirectory(prefix="k9-backup-") as directory:
            yield _BucketWriter(objects, location, Path(directory))


# --- reading --------------------------------------------------------------------------------------


class BackupReader(Protocol):
    """Gives the files of one backup."""

    async def manifest(self) -> Manifest:
        """What the backup has.

        Raises:
            CommandError: there is no complete backup, or its manifest is not valid.
        """

    def fetched(self, entry: FileEntry) -> AbstractAsyncContextManager[Path]:
        """The directory in which a file is until the end of the block.

        Raises:
            CommandError: it is not there, or not as the manifest has it.
        """


class _DirectoryReader:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def manifest(self) -> Manifest:
        return await asyncio.to_thread(archive.read_manifest, self._directory)

    @asynccontextmanager
    async def fetched(self, entry: FileEntry) -> AsyncIterator[Path]:  # noqa: ARG002
        yield self._directory


class _BucketReader:
    def __init__(self, objects: ObjectStore, location: S3Location, directory: Path) -> None:
        self._objects = objects
        self._location = location
        self._directory = directory

    async def manifest(self) -> Manifest:
        key = self._location.key(MANIFEST)
        try:
            data = await self._objects.get_bytes(key, archive.MANIFEST_BYTES_MAX)
        except NotFound:
            raise CommandError(await self._without_manifest()) from None
        except Corrupt as error:
            raise CommandError(f"{self._location}: {error}") from error
        return archive.decode_manifest(data, f"{self._location}/{MANIFEST}")

    async def _without_manifest(self) -> str:
        keys = await self._objects.list_keys(self._location.key(""))
        backups = sorted(
            key.removesuffix(f"/{MANIFEST}") for key in keys if key.endswith(f"/{MANIFEST}")
        )
        if backups:
            newest = S3Location(self._location.bucket, backups[-1])
            return f"{self._location}: has {len(backups)} backups; name one, such as {newest}"
        why = "has an interrupted backup" if keys else f"has no backup ({MANIFEST})"
        return f"{self._location}: {why}"

    @asynccontextmanager
    async def fetched(self, entry: FileEntry) -> AsyncIterator[Path]:
        where = f"{self._location}/{entry.name}"
        if not archive.is_own_name(entry.name):
            raise CommandError(f"{where}: is missing")
        path = self._directory / entry.name
        try:
            await self._objects.get_to_file(
                self._location.key(entry.name), path, sha256_hex=entry.sha256, size=entry.bytes
            )
            yield self._directory
        except NotFound:
            raise CommandError(f"{where}: is missing") from None
        except Corrupt:
            raise CommandError(
                f"{where}: is damaged: its SHA-256 is not that in the manifest"
            ) from None
        finally:
            path.unlink(missing_ok=True)


@asynccontextmanager
async def open_reader(place: Place, settings: Settings) -> AsyncIterator[BackupReader]:
    """A reader of the backup at a place, one file of which is on the disk at a time."""
    if isinstance(place, Path):
        yield _DirectoryReader(place)
        return
    async with _open_objects(place, settings) as objects:
        with tempfile.TemporaryDirectory(prefix="k9-restore-") as directory:
            yield _BucketReader(objects, place, Path(directory))


@asynccontextmanager
async def _open_objects(location: S3Location, settings: Settings) -> AsyncIterator[ObjectStore]:
    aws = msgspec.structs.replace(settings.aws, bucket=location.bucket)
    async with open_object_store(msgspec.structs.replace(settings, aws=aws)) as objects:
        yield objects
