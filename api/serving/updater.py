"""Follows the current builds: lists the models, fetches what changed, maps it, puts it to use.

A version that cannot be put to use changes nothing: the one before it answers on. What the builds
table says of a version decides whether it is put to use. Without the table the disk has what it
said; that is verified once it answers.
"""

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from api import metrics
from api.health import Health
from api.serving.background import cancelled
from api.serving.registry import IndexRegistry
from api.serving.segment import Segment
from core import names, telemetry
from core.errors import Corrupt, NewerFormat, NotFound, Unavailable
from core.files import write_atomically
from core.index.manifest import Manifest
from core.models import Build, Model
from core.resources import Resources
from core.retry import RetryPolicy
from core.versions import VersionRecord

_FIRST_LIST_S: Final = 1.5
"""How long a start waits for DynamoDB before it serves what the cache has."""
_RETRY: Final = RetryPolicy(first_s=1.0, max_s=60.0, jitter=0.0)
_MODELS: Final = msgspec.json.Decoder(list[Model])

_log = telemetry.logger(__name__)

VersionKey = tuple[str, int]
"""Build id and fence: what names a version's files."""


class _Failed(msgspec.Struct, frozen=True):
    """A version that could not be put to use."""

    version: VersionKey
    failures: int
    retry_at: float
    """By the event loop's clock."""
    refused: bool
    """Its files are damaged, missing or newer: waiting mends nothing, and readiness does
    not wait."""


class IndexUpdater:
    """The task that keeps the registry as the models table has it."""

    def __init__(self, resources: Resources, registry: IndexRegistry, health: Health) -> None:
        """Nothing is looked up before `run`."""
        self._models = resources.models
        self._builds = resources.builds
        self._versions = resources.versions
        self._registry = registry
        self._health = health
        self._serving, environment = resources.settings.serving, resources.settings.environment
        self._list_file = names.directory_of(self._serving.cache_dir, environment) / "current.json"
        """The models as last listed: for a start without DynamoDB."""
        self._listed = b""
        """What was written to it."""
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._downloading: set[str] = set()
        """Of those, the ones for which S3 is waited for."""
        self._failed: dict[str, _Failed] = {}
        self._deleted: set[str] = set()
        """Deleted model versions whose local copies may be left."""
        self._unverified: set[str] = set()
        """Model versions that answer from what the builds table was not asked about."""
        self.records: dict[str, VersionRecord] = {}
        """What the builds table said of the current versions, by model version."""

    async def run(self) -> None:
        """Until cancelled. The first list is given a short time, then the cache answers."""
        listing = asyncio.create_task(self._update())
        try:
            done, _ = await asyncio.wait({listing}, timeout=_FIRST_LIST_S)
            if not done or not listing.result():
                await self._restore()
            await listing
            while True:
                await asyncio.sleep(self._serving.refresh_s)
                await self._update()
        finally:
            await cancelled(listing, *self._loading.values())

    async def _update(self) -> bool:
        """Lists the models once; whether DynamoDB answered."""
        try:
            models = await self._models.list_models()
        except NewerFormat as error:
            self._health.ok("dynamodb")
            if self._health.outdated is None:
                _log.error("the tables are refused", reason=str(error))
            self._health.outdated = str(error)
            return True
        except Exception as error:  # noqa: BLE001 - whatever it is, what is loaded answers on
            self._health.failing("dynamodb", type(error).__name__)
            if not isinstance(error, Unavailable):
                _log.error("listing the models failed", exc_info=error)
            return False
        self._health.ok("dynamodb")
        self._health.outdated = None
        self._apply(models)
        self._registry.troubles.update(self._models.refused)
        await self._write_list(models)
        await self._clear_deleted()
        return True

    async def _write_list(self, models: list[Model]) -> None:
        data = msgspec.json.encode(models)
        if data == self._listed:
            return
        try:
            await asyncio.to_thread(write_atomically, self._list_file, data)
        except OSError as error:
            _log.warning("current builds not kept", error=str(error))
        else:
            self._listed = data

    async def _clear_deleted(self) -> None:
        """Removes local copies of deleted model versions, once no request reads them any more."""
        known = self._registry.known
        self._deleted |= {name for name, model in known.items() if model.deleting_at}
        for name in list(self._deleted):
            made_anew = name in known and not known[name].deleting_at  # which prunes by itself
            if made_anew or await self._versions.clear(name):
                self._deleted.discard(name)

    def _apply(self, models: list[Model], *, offline: bool = False) -> None:
        self._registry.learn(models)
        known, troubles = self._registry.known, self._registry.troubles
        for name in self.records.keys() - known.keys():
            del self.records[name]
        self._unverified &= self._registry.loaded.keys()
        for name in [name for name in troubles if self._is_in_use(known.get(name))]:
            del troubles[name]
        for model in known.values():
            if self._needs_loading(model):
                task = asyncio.create_task(self._load(model, offline=offline))
                self._loading[model.model_version] = task
        self._update_readiness()

    def _needs_loading(self, model: Model) -> bool:
        name = model.model_version
        if model.current_build_id is None or model.deleting_at or name in self._loading:
            return False
        if name in self._unverified:
            return True
        if self._is_in_use(model):
            return False
        failed = self._failed.get(name)
        now = asyncio.get_running_loop().time()
        return failed is None or failed.version != _version_key(model) or now >= failed.retry_at

    def _is_in_use(self, model: Model | None) -> bool:
        """Whether its current build answers; of a deleted model version none is missing."""
        if model is None or model.deleting_at:
            return True
        segment = self._registry.segment(model.model_version)
        return segment is not None and (segment.build_id, segment.fence) == _version_key(model)

    async def _load(self, model: Model, *, offline: bool) -> None:
        name = model.model_version
        try:
            if name in self._unverified and not offline:
                await self._verify_loaded(name)
            if self._is_in_use(model):
                return
            record = await self._record_of(model, offline=offline)
            with metrics.SWAP_SECONDS.labels("fetch").time():
                found = await self._versions.cached(record)
                if found is None:
                    if not offline:
                        await self._verify_loaded(name)
                    if self._registry.current(name) is None:
                        await self._load_fallback(model, offline=offline)
                    found = await self._download(record)
            await self._activate(model, *found, verified=self.records.get(name) is record)
        except Exception as error:  # noqa: BLE001 - the version before answers on
            self._note_failure(model, error)
        else:
            self._failed.pop(name, None)
            self._registry.troubles.pop(name, None)
            _log.info("index in use", model_version=name, build_id=model.current_build_id)
            await self._prune(VersionRecord.unread(model))
        finally:
            del self._loading[name]
            self._update_readiness()

    async def _record_of(self, model: Model, *, offline: bool) -> VersionRecord:
        """What is known of the current version before any of its files is read.

        Without the builds table that is what this disk has of it, which may be its name alone.
        """
        build: Build | None = None
        try:
            if not offline:
                build = await self._build(model.current_build_id or "")
        except Unavailable:
            offline = True
        if offline:
            return await self._versions.remembered(model)
        if build is None or build.model_version != model.model_version:
            raise Corrupt("the builds table does not have it")
        record = VersionRecord.of(build)
        self.records[model.model_version] = record
        return record

    async def _verify_loaded(self, name: str) -> None:
        """Drops what answers, where the builds table says that it must not.

        Since a start without DynamoDB, say: what was deleted is in a removed one for good.
        """
        segment = self._registry.segment(name)
        if segment is None:
            return
        try:
            build = await self._build(segment.build_id)
        except Unavailable:  # nothing that changed can be read either, and the answer says so
            return
        self._unverified.discard(name)
        if not _may_answer(build, segment.manifest):
            self._registry.drop(name)
        elif build is not None and self._is_in_use(self._registry.known.get(name)):
            self.records[name] = VersionRecord.of(build)

    async def _build(self, build_id: str) -> Build | None:
        try:
            return await self._builds.get_build(build_id)
        except NotFound:
            return None

    async def _download(self, record: VersionRecord) -> tuple[Path, Manifest]:
        if not record.prefix:
            raise Unavailable("the builds table does not answer, and the cache does not have it")
        self._downloading.add(record.model_version)
        self._update_readiness()
        try:
            found = await self._versions.download(record)
        except Unavailable as error:
            self._health.failing("s3", type(error).__name__)
            raise
        except (Corrupt, NewerFormat, NotFound):  # S3 did answer
            self._health.ok("s3")
            raise
        finally:
            self._downloading.discard(record.model_version)
        self._health.ok("s3")
        return found

    async def _activate(
        self, model: Model, directory: Path, manifest: Manifest, *, verified: bool
    ) -> None:
        with metrics.SWAP_SECONDS.labels("open").time():
            segment = await asyncio.to_thread(Segment.open, directory, manifest, model)
        known = self._registry.known.get(model.model_version)
        if known is None or known.deleting_at or known.data != model.data:
            raise Unavailable("the data was restored, deleted or made anew while it was loaded")
        with metrics.SWAP_SECONDS.labels("activate").time():
            await self._registry.activate(model, segment)
        if verified:
            self._unverified.discard(model.model_version)
        else:
            self._unverified.add(model.model_version)

    async def _load_fallback(self, model: Model, *, offline: bool) -> None:
        """Answers from an earlier version that is on this disk, until the current one is here.

        Not from one that was removed: tombstones that it needs may be gone, and what was deleted
        would be back.
        """
        log = _log.bind(model_version=model.model_version)
        try:
            fallback = await self._versions.fallback(model)
            if fallback is None:
                return
            record, directory, manifest = fallback
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
            await self._activate(then, directory, manifest, verified=verified)
        except Exception as error:  # noqa: BLE001 - the current version is what matters
            log.warning("no earlier index put to use", reason=str(error))
        else:
            log.warning(
                "an earlier index answers until the current one is here",
                build_id=record.build_id,
                current_build_id=model.current_build_id,
            )
            self._update_readiness()

    def _note_failure(self, model: Model, error: Exception) -> None:
        name, version = model.model_version, _version_key(model)
        before = self._failed.get(name)
        failures = 1 + (before.failures if before and before.version == version else 0)
        wait_s = _RETRY.delay_s(failures)
        refused = isinstance(error, (Corrupt, NewerFormat, NotFound))
        retry_at = asyncio.get_running_loop().time() + wait_s
        self._failed[name] = _Failed(version, failures, retry_at, refused)
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
            await self._versions.prune(record)
        except OSError as error:
            _log.warning("old versions not removed", error=str(error))

    def _update_readiness(self) -> None:
        """Ready once every cached index is loaded and at least one answers, or none is expected.

        Downloads are waited for only while nothing answers: S3 may hang.
        """
        self._health.loading = bool(self._loading)
        loaded = self._registry.loaded
        pending = [name for name in self._loading if name not in loaded]
        if self._health.answering or not self._downloading.issuperset(pending):
            return
        expected = [
            name
            for name, model in self._registry.known.items()
            if model.current_build_id is not None
            and not model.deleting_at
            and not (name in self._failed and self._failed[name].refused)
        ]
        self._health.answering = bool(loaded) or not expected

    async def _restore(self) -> None:
        """Loads what an earlier process had, as far as it is still on this disk."""
        try:
            data = await asyncio.to_thread(self._list_file.read_bytes)
            models = _MODELS.decode(data)
        except (OSError, ValueError, RecursionError):
            return
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
            and self._versions.directory(VersionRecord.unread(model)).parent.exists()
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


def _version_key(model: Model) -> VersionKey:
    return model.current_build_id or "", model.current_fence
