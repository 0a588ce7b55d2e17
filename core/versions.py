"""Index versions: immutable files in S3, and verified copies of them on the local disk.

In S3 a version is `environments/{environment}/indexes/{model_version}/{build_id}/{fence}/`. Its
manifest is uploaded last. The fence is part of the prefix so that a worker that lost its lease
cannot touch the version that its successor publishes.

The builds table has a version's prefix and manifest: files in S3 and on disk are verified by them.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

import msgspec

from core import files, names, telemetry
from core.concurrency import gather
from core.errors import Corrupt, NewerFormat, NotFound
from core.index import cache
from core.index.files import COLUMNS
from core.index.manifest import MANIFEST, FileInfo, Manifest, contents, decode_manifest, manifest_of
from core.index.version import mapped_files, verify_files
from core.models import Build, Model, Progress, ProgressCallback
from core.object_store import PART_BYTES, ObjectStore

_MANIFEST_BYTES_MAX = 4 * 1024 * 1024
_DOWNLOAD_S: Final = 600.0
"""How long a process waits for another one's download of a version."""
_DOWNLOAD_POLL_S: Final = 0.05
_FALLBACKS: Final = 1
"""Earlier versions of a model version that stay in the cache."""
RECORD: Final = "record.json"
"""Beside the files of a cached version: its `VersionRecord`."""

_log = telemetry.logger(__name__)


class VersionRecord(msgspec.Struct, frozen=True):
    """A version as the builds table has it, before any of its files is read."""

    model_version: str
    build_id: str
    fence: int
    prefix: str
    """Where its files are in the bucket, with the slash at the end."""
    manifest: dict[str, Any] | None = None
    """As it was published; None if it is not known, as without the builds table."""

    @classmethod
    def of(cls, build: Build) -> Self:
        """The record of a published build."""
        prefix = build.prefix or names.legacy_version_prefix(
            build.model_version, build.build_id, build.fence
        )
        return cls(build.model_version, build.build_id, build.fence, prefix, build.manifest)

    @classmethod
    def unread(cls, model: Model) -> Self:
        """The current version, without having read the builds table.

        Raises:
            ValueError: the model version has no current build.
        """
        if model.current_build_id is None:
            raise ValueError("the model version has no current build")
        return cls(model.model_version, model.current_build_id, model.current_fence, "")

    def check(self, raw: bytes) -> Manifest:
        """Decodes the manifest file.

        Raises:
            Corrupt: it cannot be read, or is not the one that was published.
        """
        manifest = decode_manifest(raw)
        if (manifest.model_version, manifest.build_id) != (self.model_version, self.build_id):
            raise Corrupt(f"{MANIFEST} is of another version", MANIFEST)
        # Without the published one, only the checksums within the version can be verified.
        if self.manifest is not None and contents(raw) != self.manifest:
            raise Corrupt(f"{MANIFEST} is not the one that the builds table has", MANIFEST)
        return manifest

    def describes(self, manifest: Manifest) -> bool:
        """Whether a manifest is the published one, in the fields that this release knows."""
        if self.manifest is None:
            return True
        return manifest_of(self.manifest) == manifest


_DECODER: Final = msgspec.json.Decoder(VersionRecord)


class VersionStore:
    """Uploads versions to S3, and keeps verified copies in the cache directory.

    Environments may share the cache directory. Every method that reads or writes S3 raises
    Unavailable where it does not answer in time.
    """

    def __init__(self, objects: ObjectStore, environment: str, cache_dir: Path) -> None:
        self._objects = objects
        self._cache_dir = names.directory_of(cache_dir, environment) / "versions"
        self._downloads = self._cache_dir.parent / "downloads"
        """A locked file for each version that is being downloaded."""
        self._early_dir = cache_dir / "versions"
        """The cache of releases up to 23e14f8, for all environments."""

    async def upload(
        self,
        prefix: str,
        directory: Path,
        entries: Mapping[str, FileInfo],
        report: ProgressCallback = lambda _progress: None,
    ) -> dict[str, FileInfo]:
        """Uploads the files of a version but its manifest; adds S3's checksums to their entries.

        Progress is in bytes.
        """
        total = sum(entry.bytes for entry in entries.values())
        done = 0
        uploaded: dict[str, FileInfo] = {}
        for name, entry in entries.items():
            await self._objects.put(prefix + name, directory / name, sha256_hex=entry.sha256)
            checksum = await asyncio.to_thread(files.checksum, directory / name, PART_BYTES)
            uploaded[name] = msgspec.structs.replace(entry, s3_checksum=checksum)
            done += entry.bytes
            report(Progress("upload", done, total))
        return uploaded

    async def put_manifest(self, prefix: str, manifest: Manifest) -> None:
        """Uploads the manifest, the last file of a version: one that has it is complete."""
        await self._objects.put(prefix + MANIFEST, manifest.encode())

    async def is_there(self, record: VersionRecord) -> bool:
        """Whether S3 has the version."""
        try:
            await self._objects.head(record.prefix + MANIFEST)
        except NotFound:
            return False
        return True

    async def check(self, record: VersionRecord) -> Manifest:
        """The manifest in S3.

        Raises:
            Corrupt: it is not the one that was published.
            NotFound: it is not in S3.
        """
        return record.check(await self._manifest(record))

    async def cached(self, record: VersionRecord) -> tuple[Path, Manifest] | None:
        """The local copy of a version; None if there is no valid one. An invalid one is removed."""
        directory = self.directory(record)
        try:
            return await asyncio.to_thread(self._verified, directory, record)
        except (Corrupt, OSError) as error:
            _refused(record, "cache", error)
            await asyncio.to_thread(cache.remove, directory)
            return None

    async def download(self, record: VersionRecord) -> tuple[Path, Manifest]:
        """A new local copy of a version.

        Processes that share the cache download a version once: the others wait for that.

        Raises:
            Corrupt: the version in S3 is not the one that was published.
            NotFound: it is not in S3.
        """
        async with self._turn(record) as waited:
            found = await self.cached(record) if waited else None
            return found or await self._download(record)

    async def _download(self, record: VersionRecord) -> tuple[Path, Manifest]:
        directory = self.directory(record)
        incoming = directory.with_name(f".{directory.name}.{uuid4().hex}")
        try:
            manifest = await self.fetch(record, incoming, reuse_for=directory)
            (incoming / RECORD).write_bytes(msgspec.json.encode(record))
            cache.move_into_place(incoming, directory)
        finally:
            await asyncio.to_thread(shutil.rmtree, incoming, ignore_errors=True)
        return directory, manifest

    @asynccontextmanager
    async def _turn(self, record: VersionRecord) -> AsyncIterator[bool]:
        """Waits while another process downloads the version; whether one did.

        Not for ever: that process may hang. Two downloads at once harm nothing.
        """
        path = self._downloads / f"{record.model_version}.{record.build_id}.{record.fence}"
        path.parent.mkdir(parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DOWNLOAD_S
        waited = False
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(files.file_lock(path))
                except BlockingIOError:
                    if loop.time() >= deadline:
                        break
                    waited = True
                    await asyncio.sleep(_DOWNLOAD_POLL_S)  # nothing announces the end of a lock
                else:
                    stack.callback(path.unlink, missing_ok=True)
                    break
            yield waited

    async def fetch(
        self,
        record: VersionRecord,
        directory: Path,
        only: Sequence[str] = (),
        *,
        reuse_for: Path | None = None,
    ) -> Manifest:
        """Downloads and verifies the manifest and files of a version, into a new directory.

        These are the files that serving maps, or `only` the named ones. Where the new version is to
        be moved to `reuse_for`, and has files of an earlier one, what is of that in the cache is
        copied.

        Raises:
            Corrupt: the version in S3 is not the one that was published.
            NotFound: it is not in S3.
        """
        try:
            raw = await self._manifest(record)
            manifest = record.check(raw)
            await asyncio.to_thread(directory.mkdir, parents=True)
            wanted = set(only or mapped_files(manifest))
            if reuse_for is not None and manifest.reused_build_id is not None:
                entries = {name: manifest.files[name] for name in wanted}
                wanted -= await asyncio.to_thread(cache.copy_same, reuse_for, directory, entries)
            await self._get_files(record, manifest, sorted(wanted), directory)
        except (Corrupt, NewerFormat) as error:
            _refused(record, "s3", error)
            raise
        (directory / MANIFEST).write_bytes(raw)
        return manifest

    async def remembered(self, model: Model) -> VersionRecord:
        """The record of the current version, from this disk; incomplete if there is none."""
        return await asyncio.to_thread(self._remembered, VersionRecord.unread(model))

    async def fallback(self, model: Model) -> tuple[VersionRecord, Path, Manifest] | None:
        """The latest other version on this disk that is valid and of the same data.

        Its build may have been removed.
        """
        current = self.directory(VersionRecord.unread(model))
        for directory in await asyncio.to_thread(cache.others, current):
            build_id, _, fence = directory.name.rpartition(".")
            unread = VersionRecord(model.model_version, build_id, int(fence), "")
            record = await asyncio.to_thread(self._remembered, unread)
            try:
                found = await self.cached(record)
            except NewerFormat:
                continue  # left for the processes that read it
            if found is not None and found[1].data == model.data:
                return record, *found
        return None

    def directory(self, record: VersionRecord) -> Path:
        """The directory of the local copy of a version."""
        return self._cache_dir / record.model_version / f"{record.build_id}.{record.fence}"

    async def presign(
        self, record: VersionRecord, name: str, entry: FileInfo, expires_s: int
    ) -> str:
        """A URL that reads one file of a version.

        Raises:
            Corrupt: the file in S3 is not the one that was published.
            NotFound: it is not in S3.
        """
        found = await self._objects.head(record.prefix + name)
        # Releases up to 23e14f8 recorded no S3 checksum, only a digest in the object's metadata,
        # which whoever can write to the bucket can forge.
        same = (
            found.sha256_hex == entry.sha256
            if entry.s3_checksum is None
            else found.checksum == entry.s3_checksum
        )
        if not same or found.size_bytes != entry.bytes:
            error = Corrupt(f"{name} is not the one that was published", name)
            _refused(record, "s3", error)
            raise error
        return await self._objects.presign(record.prefix + name, expires_s)

    async def prune(self, current: VersionRecord) -> None:
        """Removes cached versions but the current one, the fallbacks, and leased ones."""
        directory = self.directory(current)
        await asyncio.to_thread(cache.prune, directory, _FALLBACKS)
        early = self._early_dir / current.model_version / directory.name
        await asyncio.to_thread(cache.prune, early, 0)

    async def clear(self, model_version: str) -> bool:
        """Removes the unleased local copies of a model version; True if none is left."""
        return await asyncio.to_thread(cache.clear, self._cache_dir / model_version)

    async def _manifest(self, record: VersionRecord) -> bytes:
        with _named(MANIFEST, record):
            return await self._objects.get_bytes(record.prefix + MANIFEST, _MANIFEST_BYTES_MAX)

    async def _get_files(
        self, record: VersionRecord, manifest: Manifest, file_names: Sequence[str], directory: Path
    ) -> None:
        async def get(name: str) -> None:
            key, info = record.prefix + name, manifest.files[name]
            with _named(name, record):
                await self._objects.get_to_file(
                    key, directory / name, sha256_hex=info.sha256, size=info.bytes
                )

        await gather(*(get(name) for name in file_names))

    def _verified(self, directory: Path, record: VersionRecord) -> tuple[Path, Manifest] | None:
        if record.manifest is not None:
            early = self._early_dir / record.model_version / directory.name
            cache.adopt(early, directory)
        if not directory.exists():
            return None
        manifest = record.check((directory / MANIFEST).read_bytes())
        if COLUMNS in manifest.files and not (directory / COLUMNS).exists():
            # An earlier release, which shares the cache, downloads no attributes. It has what it
            # uses mapped, and finds it again in the download that follows.
            cache.remove(directory)
            return None
        verify_files(directory, manifest, mapped_files(manifest))
        if record.manifest is not None and self._remembered(record) != record:
            with suppress(OSError):  # it is only needed to start without DynamoDB
                files.write_atomically(directory / RECORD, msgspec.json.encode(record))
        return directory, manifest

    def _remembered(self, record: VersionRecord) -> VersionRecord:
        """The record on this disk; without one, the version's name alone."""
        unread = msgspec.structs.replace(record, prefix="", manifest=None)
        path = self.directory(record) / RECORD
        try:
            found = _DECODER.decode(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return unread
        same = msgspec.structs.replace(unread, prefix=found.prefix, manifest=found.manifest)
        return found if same == found else unread


@contextmanager
def _named(file: str, record: VersionRecord) -> Iterator[None]:
    """Has an error of an object name the file, not its key in the bucket."""
    try:
        yield
    except Corrupt as error:
        raise Corrupt(str(error).replace(record.prefix + file, file), file) from error


def _refused(record: VersionRecord, where: str, error: Exception) -> None:
    telemetry.VERSIONS_REFUSED.labels(where).inc()
    _log.error(
        "index version refused",
        model_version=record.model_version,
        build_id=record.build_id,
        fence=record.fence,
        where=where,
        file=getattr(error, "file", None),
        reason=str(error),
    )
