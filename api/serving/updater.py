"""Follows the current builds: looks them up, fetches what changed, maps it, swaps it in.

A version that cannot be put to use changes nothing: the one before it serves on. What the builds
table says of a version decides whether it is put to use. Without the table the disk has what it
said; that is verified once it answers.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from api import metrics
from api.health import Health
from api.serving.changes import Freshness
from api.serving.dependency_probe import DependencyProbe
from api.serving.foreign_versions import ForeignVersionWatch
from api.serving.model_list_cache import ModelListCache
from api.serving.registry import IndexRegistry
from api.serving.segment import Segment
from core import telemetry
from core.errors import Corrupt, NotFound, Unavailable
from core.index.manifest import Manifest
from core.models import Build, Model
from core.resources import Resources
from core.versions import VersionRecord

_FIRST_LIST_S: Final = 1.5
"""How long a start waits for DynamoDB before it serves what the cache has."""
_BACKOFF_FIRST_S: Final = 1.0
_BACKOFF_MAX_S: Final = 60.0

_log = telemetry.logger(__name__)

Version = tuple[str, int]
"""Build id and fence: what names a version's files."""


class _Backoff(msgspec.Struct):
    version: Version
    wait_s: float
    until: float
    refused: bool
    """Its files are bad, or gone: waiting mends nothing, and readiness does not wait for it."""


class IndexUpdater:
    """The task that keeps the registry as the models table has it."""

    def __init__(
        self,
        resources: Resources,
        registry: IndexRegistry,
        health: Health,
        freshness: Freshness | None = None,
    ) -> None:
        """Nothing is looked up before `run`. Without `freshness` changes are not followed."""
        self._freshness = freshness
        self._resources = resources
        self._registry = registry
        self._health = health
        self._refresh_s = resources.settings.serving.refresh_s
        self._noted = ModelListCache(resources.settings)
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._downloading: set[str] = set()
        """Of those, the ones for which S3 is waited for."""
        self._backoff: dict[str, _Backoff] = {}
        self._deleted: set[str] = set()
        """Model versions seen to be deleted, whose local copies may be left."""
        self._unverified: set[str] = set()
        """Model versions that answer from what the builds table was not asked about."""
        self.records: dict[str, VersionRecord] = {}
        """What the builds table said of the current versions, by model version."""
        self.watches = (
            DependencyProbe(resources, health, self.records),
            ForeignVersionWatch(resources, registry, self.records),
        )

    async def run(self) -> None:
        """Until cancelled. The first look is given a short time, then the cache answers."""
        listing = asyncio.create_task(self._look())
        try:
            done, _ = await asyncio.wait({listing}, timeout=_FIRST_LIST_S)
            if not done or not listing.result():
                await self._restore()
            await listing
            while True:
                await asyncio.sleep(self._refresh_s)
                await self._look()
        finally:
            listing.cancel()
            tasks = [listing, *self._loading.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> bool:
        """Looks once; whether DynamoDB answered."""
        try:
            models = await self._resources.models.list_models()
        except Exception as error:  # noqa: BLE001 - whatever it is, what is loaded serves on
            self._health.failing("dynamodb", type(error).__name__)
            if not isinstance(error, Unavailable):
                _log.error("current builds not looked up", exc_info=error)
            return False
        self._health.ok("dynamodb")
        self._apply(models)
        await self._noted.write(models)
        await self._clear_deleted()
        return True

    async def _clear_deleted(self) -> None:
        """Removes local copies of deleted model versions, once no request reads them any more."""
        known = self._registry.known
        self._deleted |= {name for name, model in known.items() if model.deleting_at}
        for name in list(self._deleted):
            made_anew = name in known and not known[name].deleting_at  # which prunes by itself
            if made_anew or await self._resources.versions.clear(name):
                self._deleted.discard(name)

    def _apply(self, models: list[Model], *, offline: bool = False) -> None:
        self._registry.learn(models)
        for name, loaded in list(self._registry.loaded.items()):
            model = self._registry.known.get(name)
            if model is None or model.deleting_at or model.data != loaded.data:
                self._registry.drop(name)
        for name in self.records.keys() - self._registry.known.keys():
            del self.records[name]
        self._unverified &= self._registry.loaded.keys()
        troubles = self._registry.troubles
        for name in [name for name in troubles if self._in_use(self._registry.known.get(name))]:
            del troubles[name]
        for model in self._registry.known.values():
            if self._wants(model):
                task = asyncio.create_task(self._load(model, offline=offline))
                self._loading[model.model_version] = task
        self._settle()

    def _wants(self, model: Model) -> bool:
        name = model.model_version
        if model.current_build_id is None or model.deleting_at or name in self._loading:
            return False
        if name in self._unverified:
            return True
        if self._in_use(model):
            return False
        backoff = self._backoff.get(name)
        now = asyncio.get_running_loop().time()
        return backoff is None or backoff.version != _version(model) or now >= backoff.until

    def _in_use(self, model: Model | None) -> bool:
        """Whether its current build answers; of a model version that goes, none is missing."""
        if model is None or model.deleting_at:
            return True
        loaded = self._registry.loaded.get(model.model_version)
        return loaded is not None and (loaded.build_id, loaded.fence) == _version(model)

    async def _load(self, model: Model, *, offline: bool) -> None:
        name = model.model_version
        try:
            if name in self._unverified and not offline:
                await self._verify_loaded(name)
            if self._in_use(model):
                return
            record = await self._record_of(model, offline=offline)
            found = await self._resources.versions.cached(record)
            if found is None:
                if not offline:
                    await self._verify_loaded(name)
                if name not in self._registry.loaded:
                    await self._stand_in(model, offline=offline)
                found = await self._download(record)
            await self._use(model, *found, verified=self.records.get(name) is record)
        except Exception as error:  # noqa: BLE001 - the version before serves on
            self._note_failure(model, error)
        else:
            self._backoff.pop(name, None)
            self._registry.troubles.pop(name, None)
            _log.info("index in use", model_version=name, build_id=model.current_build_id)
            await self._prune(VersionRecord.unread(model))
        finally:
            del self._loading[name]
            self._settle()

    async def _record_of(self, model: Model, *, offline: bool) -> VersionRecord:
        """What is known of the current version before any of its files is read.

        Without the builds table that is what this disk has of it, which may be its name alone.

        Raises:
            Corrupt: the builds table does not have it.
        """
        build: Build | None = None
        try:
            if not offline:
                build = await self._build(model.current_build_id or "")
        except Unavailable:
            offline = True
        if offline:
            return await self._resources.versions.remembered(model)
        if build is None or build.model_version != model.model_version:
            raise Corrupt("the builds table does not have it")
        record = VersionRecord.of(build)
        self.records[model.model_version] = record
        return record

    async def _verify_loaded(self, name: str) -> None:
        """Drops what answers, where the builds table says that it must not.

        Since a start without DynamoDB, say: what was deleted is in a removed one for good.
        """
        loaded = self._registry.loaded.get(name)
        if loaded is None:
            return
        try:
            build = await self._build(loaded.build_id)
        except Unavailable:  # nothing that changed can be read either, and the answer says so
            return
        self._unverified.discard(name)
        if build is None or not _may_answer(build, loaded.manifest):
            self._registry.drop(name)
        elif self._in_use(self._registry.known.get(name)):
            self.records[name] = VersionRecord.of(build)

    async def _build(self, build_id: str) -> Build | None:
        try:
            return await self._resources.builds.get_build(build_id)
        except NotFound:
            return None

    async def _download(self, record: VersionRecord) -> tuple[Path, Manifest]:
        if not record.prefix:
            raise Unavailable("the builds table does not answer, and the cache does not have it")
        self._downloading.add(record.model_version)
        self._settle()
        try:
            found = await self._resources.versions.download(record)
        except Unavailable as error:
            self._health.failing("s3", type(error).__name__)
            raise
        except (Corrupt, NotFound):  # S3 did answer
            self._health.ok("s3")
            raise
        finally:
            self._downloading.discard(record.model_version)
        self._health.ok("s3")
        return found

    async def _use(
        self, model: Model, directory: Path, manifest: Manifest, *, verified: bool
    ) -> None:
        loaded = await asyncio.to_thread(Segment.open, directory, manifest, model)
        known = self._registry.known.get(model.model_version)
        if known is None or known.deleting_at or known.data != model.data:
            raise Unavailable("the data was restored, deleted or made anew while it was loaded")
        if self._freshness is None:
            self._registry.swap(loaded)
        else:
            await self._freshness.adopt(model, loaded)
        if verified:
            self._unverified.discard(model.model_version)
        else:
            self._unverified.add(model.model_version)

    async def _stand_in(self, model: Model, *, offline: bool) -> None:
        """Answers from an earlier version that is on this disk, until the current one is here.

        Not from one that was removed: tombstones that it needs may be gone, and what was deleted
        would be back.
        """
        try:
            spare = await self._resources.versions.spare(model)
            if spare is None:
                return
            record, directory, manifest = spare
            verified = not offline
            if verified:
                try:
                    if not _may_answer(await self._build(record.build_id), manifest):
                        return
                except Unavailable:  # nothing that changed can be read either: the answer says so
                    verified = False
            then = msgspec.structs.replace(
                model, current_build_id=record.build_id, current_fence=record.fence
            )
            await self._use(then, directory, manifest, verified=verified)
        except Exception as error:  # noqa: BLE001 - the current version is what matters
            _log.warning(
                "no earlier index put to use", model_version=model.model_version, reason=str(error)
            )
        else:
            _log.warning(
                "an earlier index answers until the current one is here",
                model_version=model.model_version,
                build_id=record.build_id,
                current_build_id=model.current_build_id,
            )
            self._settle()

    def _note_failure(self, model: Model, error: Exception) -> None:
        name, version = model.model_version, _version(model)
        before = self._backoff.get(name)
        again = before is not None and before.version == version
        wait_s = min(2 * before.wait_s, _BACKOFF_MAX_S) if before and again else _BACKOFF_FIRST_S
        refused = isinstance(error, (Corrupt, NotFound))
        until = asyncio.get_running_loop().time() + wait_s
        self._backoff[name] = _Backoff(version, wait_s, until, refused)
        self._registry.troubles[name] = _trouble(model, error)
        metrics.LOAD_FAILED.labels(type(error).__name__).inc()
        _log.error(
            "index not put to use",
            model_version=name,
            build_id=model.current_build_id,
            error=type(error).__name__,
            detail=str(error),
            again_in_s=wait_s,
        )

    async def _prune(self, record: VersionRecord) -> None:
        try:
            await self._resources.versions.prune(record)
        except OSError as error:
            _log.warning("old versions not removed", error=str(error))

    def _settle(self) -> None:
        """Ready once all that is on this disk answers, and something does, or need not.

        Downloads are waited for only while nothing answers: S3 may hang.
        """
        loaded = self._registry.loaded
        pending = [name for name in self._loading if name not in loaded]
        if self._health.answering or not self._downloading.issuperset(pending):
            return
        waiting = [
            model
            for name, model in self._registry.known.items()
            if model.current_build_id is not None
            and not model.deleting_at
            and name not in loaded
            and not (name in self._backoff and self._backoff[name].refused)
        ]
        self._health.answering = bool(loaded) or not waiting

    async def _restore(self) -> None:
        """Loads what an earlier process had, as far as it is still on this disk."""
        models = await self._noted.read()
        if self._registry.known:  # DynamoDB was faster after all
            return
        here = [model for model in models if self._is_here(model)]
        if here:
            _log.warning("DynamoDB does not answer: serving what the cache has")
            self._apply(here, offline=True)

    def _is_here(self, model: Model) -> bool:
        """Whether this disk has any version of it."""
        return (
            model.current_build_id is not None
            and self._resources.versions.directory(VersionRecord.unread(model)).parent.exists()
        )


def _trouble(model: Model, error: Exception) -> str:
    """Why a version is not in use, and what to do about it, for people; the log says more."""
    name, build_id = model.model_version, model.current_build_id
    if isinstance(error, Corrupt):
        return f"build {build_id} is damaged ({error}): `k9 rebuild {name}` makes it again"
    if isinstance(error, NotFound):
        return f"files of build {build_id} are gone from S3: `k9 rebuild {name}` makes them again"
    what = error.public if isinstance(error, Unavailable) else type(error).__name__
    return f"build {build_id} could not be loaded: {what}"


def _may_answer(build: Build | None, manifest: Manifest) -> bool:
    """Whether a version that is on this disk may answer: it was published so, and not removed."""
    if build is None or build.removed_at is not None:
        return False
    return VersionRecord.of(build).describes(manifest)


def _version(model: Model) -> Version:
    return model.current_build_id or "", model.current_fence


@asynccontextmanager
async def following(refresher: IndexUpdater) -> AsyncIterator[None]:
    """Runs the refresher until the end of the block."""
    running = [refresher.run(), *(watch.run() for watch in refresher.watches)]
    tasks = [asyncio.create_task(each) for each in running]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
