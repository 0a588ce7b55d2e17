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
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from core import telemetry
from core.errors import Corrupt, NotFound
from core.models import Model
from core.objects import Objects
from core.vectors.manifest import MANIFEST, Manifest, decode_manifest
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
    ) -> None:
        """A store whose local copies have the files that `names` tells of a version."""
        self._objects = objects
        self._cache_dir = cache_dir
        self._names = names

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
        if model.current_build_id is None:
            raise ValueError("the model version has no current build")
        directory = self.directory(model)
        if directory.exists():
            try:
                return directory, await asyncio.to_thread(_verified, directory, self._names)
            except (Corrupt, OSError) as error:
                telemetry.VERSIONS_REFUSED.labels("cache").inc()
                _log.warning("cached version refused", path=directory.name, reason=str(error))
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        try:
            return directory, await self._download(model, directory)
        except Corrupt as error:
            telemetry.VERSIONS_REFUSED.labels("s3").inc()
            _log.error("version refused", path=directory.name, reason=str(error))
            raise

    def directory(self, model: Model) -> Path:
        """Where the current build's copy is, or will be."""
        name = f"{model.current_build_id}.{model.current_fence}"
        return self._cache_dir / "versions" / model.model_version / name

    async def presign(self, model: Model, name: str, expires_s: int) -> str:
        """A URL under which one file of the current build can be fetched."""
        build_id = model.current_build_id or ""
        prefix = version_prefix(model.model_version, build_id, model.current_fence)
        return await self._objects.presign(prefix + name, expires_s)

    async def prune(self, model: Model) -> None:
        """Removes cached versions of a model version, but the current one and what is leased."""
        current = self.directory(model)
        await asyncio.to_thread(_prune, current)

    async def _download(self, model: Model, directory: Path) -> Manifest:
        prefix = version_prefix(
            model.model_version, model.current_build_id or "", model.current_fence
        )
        raw = await self._objects.get_bytes(prefix + MANIFEST, _MANIFEST_BYTES_MAX)
        manifest = decode_manifest(raw)
        if (manifest.model_version, manifest.build_id) != (
            model.model_version,
            model.current_build_id,
        ):
            raise Corrupt(f"the manifest under {prefix} is another version's")
        incoming = directory.with_name(f".{directory.name}.{uuid4().hex}")
        incoming.mkdir(parents=True)
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._names(manifest):
                    entry = manifest.files[name]
                    group.create_task(
                        self._objects.get_to_file(
                            prefix + name,
                            incoming / name,
                            sha256_hex=entry.sha256,
                            size=entry.bytes,
                        )
                    )
            (incoming / MANIFEST).write_bytes(raw)
            _settle(incoming, directory)
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        finally:
            await asyncio.to_thread(shutil.rmtree, incoming, ignore_errors=True)
        return manifest


@contextmanager
def leased(directory: Path) -> Iterator[None]:
    """Keeps a version from being pruned while it is mapped, by any process on this machine."""
    handle = os.open(directory / LEASE, os.O_CREAT | os.O_RDONLY, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _verified(directory: Path, names: Callable[[Manifest], tuple[str, ...]]) -> Manifest:
    manifest = decode_manifest((directory / MANIFEST).read_bytes())
    verify_files(directory, manifest, names(manifest))
    return manifest


def _settle(incoming: Path, directory: Path) -> None:
    """Moves a complete download into place; another process may have been faster."""
    try:
        incoming.rename(directory)
    except OSError:
        if not (directory / MANIFEST).exists():
            raise


def _prune(current: Path) -> None:
    if not current.parent.exists():
        return
    for directory in current.parent.iterdir():
        if directory == current:
            continue
        if directory.name.startswith("."):  # a download, perhaps of a process that died in it
            if time.time() - directory.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(directory, ignore_errors=True)
            continue
        lease = directory / LEASE
        handle = os.open(lease, os.O_CREAT | os.O_RDONLY, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # some process has it mapped
        else:
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(handle)
