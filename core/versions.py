"""An index version: immutable files in S3, verified copies of them on the local disk.

In S3 a version is `indexes/{model_version}/{build_id}/{fence}/`, its manifest put last. The fence
is part of the name so that a worker that lost its lease can finish its uploads without touching a
byte of the version that its successor publishes.
"""

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import msgspec

from core import telemetry
from core.errors import Corrupt, NotFound
from core.models import Model
from core.objects import Objects
from core.vectors.manifest import MANIFEST, FileInfo, Manifest, decode_manifest
from core.vectors.version import mapped_files, verify_files

_ABANDONED_S = 3600.0
_MANIFEST_BYTES_MAX = 4 * 1024 * 1024
LEASE = ".lease"
"""In a directory that must not go while its holder lives: locked as long as that is."""

_log = telemetry.logger(__name__)


def version_prefix(model_version: str, build_id: str, fence: int) -> str:
    """Where a version's files are in the bucket, with the slash at the end."""
    return f"indexes/{model_version}/{build_id}/{fence}/"


class VersionStore:
    """Publishes versions to S3, and keeps verified copies in the cache directory."""

    def __init__(
        self,
        objects: Objects,
        cache_dir: Path,
        names: Callable[[Manifest], tuple[str, ...]] = mapped_files,
        spares: int = 1,
    ) -> None:
        """A store whose local copies have the files that `names` tells of a version.

        Beside the current version of a model version so many earlier ones stay on the disk.
        """
        self._objects = objects
        self._cache_dir = cache_dir
        self._names = names
        self._spares = spares

    async def upload(
        self,
        directory: Path,
        manifest: Manifest,
        fence: int,
        report: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Uploads every file of a version but its manifest.

        `report` is called with bytes done and bytes in all.
        """
        prefix = version_prefix(manifest.model_version, manifest.build_id, fence)
        total = sum(entry.bytes for entry in manifest.files.values())
        done = 0
        for name, entry in sorted(manifest.files.items()):
            await self._objects.put(prefix + name, directory / name, sha256_hex=entry.sha256)
            done += entry.bytes
            report(done, total)

    async def seal(self, manifest: Manifest, fence: int) -> None:
        """Puts the manifest, the last file of a version: what has one is whole."""
        prefix = version_prefix(manifest.model_version, manifest.build_id, fence)
        await self._objects.put(prefix + MANIFEST, manifest.encode())

    async def is_there(self, model_version: str, build_id: str, fence: int) -> bool:
        """Whether S3 has a version.

        Raises:
            Unavailable: S3 did not answer in time.
        """
        try:
            await self._objects.head(version_prefix(model_version, build_id, fence) + MANIFEST)
        except NotFound:
            return False
        return True

    async def ensure(self, model: Model) -> tuple[Path, Manifest]:
        """A verified local directory of the model version's current build.

        Takes the cached copy where its checksums hold, else downloads.

        Raises:
            Corrupt: the version in S3 is not what its manifest says.
            NotFound: it is not in S3.
            Unavailable: S3 did not answer in time.
        """
        return await self.cached(model) or await self.download(model)

    async def cached(self, model: Model) -> tuple[Path, Manifest] | None:
        """The local copy of the current build; None where there is none that holds.

        One that does not hold is removed.
        """
        directory = self.directory(model)
        if not directory.exists():
            return None
        try:
            return directory, await asyncio.to_thread(self._verified, directory, model)
        except (Corrupt, OSError) as error:
            _refused(model, "cache", error)
            await asyncio.to_thread(_remove, directory)
            return None

    async def download(self, model: Model) -> tuple[Path, Manifest]:
        """A new local copy of the current build.

        Raises:
            Corrupt: the version in S3 is not what its manifest says.
            NotFound: it is not in S3.
            Unavailable: S3 did not answer in time.
        """
        directory = self.directory(model)
        try:
            return directory, await self._download(model, directory)
        except Corrupt as error:
            _refused(model, "s3", error)
            raise

    async def spare(self, model: Model) -> tuple[Model, Path, Manifest] | None:
        """The latest other version on this disk that holds, and the model as it was with it.

        It is of the same data, but may be of a build that is not kept any more.
        """
        for directory in await asyncio.to_thread(_others, self.directory(model)):
            build_id, _, fence = directory.name.rpartition(".")
            then = msgspec.structs.replace(
                model, current_build_id=build_id, current_fence=int(fence)
            )
            found = await self.cached(then)
            if found is not None and found[1].epoch == model.epoch:
                return then, *found
        return None

    def directory(self, model: Model) -> Path:
        """Where the current build's copy is, or will be."""
        if model.current_build_id is None:
            raise ValueError("the model version has no current build")
        name = f"{model.current_build_id}.{model.current_fence}"
        return self._cache_dir / "versions" / model.model_version / name

    async def presign(self, model: Model, name: str, expires_s: int) -> str:
        """A URL under which one file of the current build can be fetched."""
        build_id = model.current_build_id or ""
        prefix = version_prefix(model.model_version, build_id, model.current_fence)
        return await self._objects.presign(prefix + name, expires_s)

    async def prune(self, model: Model) -> None:
        """Removes cached versions but the current one, the spare ones, and what is leased."""
        await asyncio.to_thread(_prune, self.directory(model), self._spares)

    async def _download(self, model: Model, directory: Path) -> Manifest:
        prefix = version_prefix(
            model.model_version, model.current_build_id or "", model.current_fence
        )
        try:
            raw = await self._objects.get_bytes(prefix + MANIFEST, _MANIFEST_BYTES_MAX)
        except Corrupt as error:
            raise Corrupt(str(error), MANIFEST) from error
        manifest = _manifest_of(model, raw)
        incoming = directory.with_name(f".{directory.name}.{uuid4().hex}")
        incoming.mkdir(parents=True)
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._names(manifest):
                    group.create_task(
                        self._fetch(prefix + name, incoming / name, manifest.files[name])
                    )
            (incoming / MANIFEST).write_bytes(raw)
            _settle(incoming, directory)
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        finally:
            await asyncio.to_thread(shutil.rmtree, incoming, ignore_errors=True)
        return manifest

    def _verified(self, directory: Path, model: Model) -> Manifest:
        manifest = _manifest_of(model, (directory / MANIFEST).read_bytes())
        verify_files(directory, manifest, self._names(manifest))
        return manifest

    async def _fetch(self, key: str, path: Path, entry: FileInfo) -> None:
        try:
            await self._objects.get_to_file(key, path, sha256_hex=entry.sha256, size=entry.bytes)
        except Corrupt as error:
            raise Corrupt(str(error), path.name) from error


@contextmanager
def leased(directory: Path) -> Iterator[None]:
    """Keeps a version from being pruned while it is mapped, by any process on this machine."""
    handle = os.open(directory / LEASE, os.O_CREAT | os.O_RDONLY, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _refused(model: Model, where: str, error: Exception) -> None:
    telemetry.VERSIONS_REFUSED.labels(where).inc()
    _log.error(
        "index version refused",
        model_version=model.model_version,
        build_id=model.current_build_id,
        fence=model.current_fence,
        where=where,
        file=getattr(error, "file", None),
        reason=str(error),
    )


def _manifest_of(model: Model, raw: bytes) -> Manifest:
    manifest = decode_manifest(raw)
    named = manifest.model_version, manifest.build_id
    if named != (model.model_version, model.current_build_id):
        raise Corrupt(f"{MANIFEST} is that of another version", MANIFEST)
    return manifest


def _settle(incoming: Path, directory: Path) -> None:
    """Moves a complete download into place; another process may have been faster."""
    try:
        incoming.rename(directory)
    except OSError:
        if not (directory / MANIFEST).exists():
            raise


def _remove(directory: Path) -> None:
    """Takes a version away at once, so that no half of it is met under its name."""
    leaving = directory.with_name(f".{directory.name}.{uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was faster
        directory.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _others(current: Path) -> list[Path]:
    """The versions beside the current one, the one that came last first."""
    if not current.parent.exists():
        return []
    found = [
        directory
        for directory in current.parent.glob("[!.]*.*")
        if directory != current and directory.name.rpartition(".")[2].isdecimal()
    ]
    return sorted(found, key=_came_at, reverse=True)


def _came_at(directory: Path) -> float:
    try:
        return (directory / MANIFEST).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _prune(current: Path, spares: int) -> None:
    if not current.parent.exists():
        return
    for directory in current.parent.glob(".*"):  # a download, perhaps of a process that died in it
        with suppress(FileNotFoundError):
            if time.time() - directory.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(directory, ignore_errors=True)
    for directory in _others(current)[spares:]:
        with suppress(FileNotFoundError):
            _remove_unless_leased(directory)


def _remove_unless_leased(directory: Path) -> None:
    handle = os.open(directory / LEASE, os.O_CREAT | os.O_RDONLY, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # some process has it mapped
    else:
        _remove(directory)
    finally:
        os.close(handle)
