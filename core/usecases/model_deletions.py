"""Deleting a model version: its builds, rows, files and record, in this order.

Each round does what can be done now, and any number of workers may run rounds: whatever a round
leaves, or a worker that dies in one, the next one finds. Nothing is removed before all who may
still write have stopped (`quiet_at`), and the record goes last, so that the name is taken until
nothing is left.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime, timedelta

from core import telemetry
from core.errors import BuildEnded, K9Error, LeaseLost, NotFound
from core.models import Build, Model, now, parse_timestamp
from core.repositories.builds import BuildRepository
from core.repositories.model_deletions import Claim, ModelDeletionRepository
from core.settings import Settings
from core.usecases.retention import Retention

_PAGE = 100

_log = telemetry.logger(__name__)


class ModelDeletions:
    """Removes model versions that are marked for it."""

    def __init__(
        self,
        deletions: ModelDeletionRepository,
        builds: BuildRepository,
        retention: Retention,
        settings: Settings,
    ) -> None:
        self._deletions = deletions
        self._builds = builds
        self._retention = retention
        self._lease = timedelta(seconds=settings.building.lease_s)
        ingest = settings.ingest
        self._quiet = timedelta(
            seconds=ingest.model_cache_s + ingest.batch_deadline_s + ingest.write_settle_s
        )

    def quiet_at(self, model: Model) -> datetime:
        """When no write under the unmarked record can arrive any more, and the index shows all.

        A process may have read the record just before the mark. It writes without a condition for
        no longer than `ModelRepository.batch_until` from then on; requests on their way, and the
        index, are given `write_settle_s`.
        """
        return parse_timestamp(model.deleting_at or model.created_at) + self._quiet

    async def round(self, model: Model) -> bool:
        """One round over a marked model version; True once nothing of it is left.

        False as well where another worker is about it.

        Raises:
            Unavailable: a dependency did not do its part; the next round goes on.
        """
        claim = await self._deletions.claim(model)
        if claim is None:
            return False
        try:
            async with self._released(claim):
                return await self._round(claim)
        except LeaseLost as error:
            _log.info("deletion left to another worker", reason=str(error))
            return False

    async def _round(self, claim: Claim) -> bool:
        model = claim.model
        builds = await self._all_builds(model)
        open_builds = [build for build in builds if build.open]
        for build in open_builds:
            await self._cancel(build)
        if open_builds or now() < self.quiet_at(model):
            return False
        removed = 0
        async with aclosing(self._deletions.remove_rows(claim)) as pages:
            async for rows in pages:
                removed += rows
                await self._deletions.renew(claim)
        if removed:
            _log.info("rows removed", model_version=model.model_version, rows=removed)
            return False  # a later pass has to find none
        if any(now() < self._left_by_worker(build) for build in builds):
            return False
        files = await self._retention.files_of(model.model_version)
        for build in builds:
            await self._deletions.renew(claim)
            await self._retention.remove_files(files.get(build.build_id, {}))
            await self._deletions.remove_build(build)
        if builds or not await self._deletions.remove_model(claim):
            return False  # the index of builds has to show none
        _log.info("model version deleted", model_version=model.model_version)
        return True

    async def _all_builds(self, model: Model) -> list[Build]:
        """Every build and verification of the model version that the indexes show."""
        name = model.model_version
        found = {build.build_id: build for build in await self._builds.list_open()}
        if model.open_build_id is not None:
            with suppress(NotFound):
                opened = await self._builds.get_build(model.open_build_id)
                found[opened.build_id] = opened
        found = {key: build for key, build in found.items() if build.model_version == name}
        position = None
        while True:
            page, position = await self._builds.list_builds(name, limit=_PAGE, position=position)
            found |= {build.build_id: build for build in page}
            if position is None:
                return list(found.values())

    async def _cancel(self, build: Build) -> None:
        """Ends a build or a verification; its worker has lost it."""
        with suppress(NotFound, BuildEnded):
            await self._builds.cancel(build.build_id, verification=build.verifies is not None)

    def _left_by_worker(self, build: Build) -> datetime:
        """When the worker that had a build has noticed its end, and puts no more files."""
        if build.ended_at is None or not build.fence:
            return parse_timestamp(build.requested_at)
        return parse_timestamp(build.ended_at) + self._lease

    @asynccontextmanager
    async def _released(self, claim: Claim) -> AsyncIterator[None]:
        try:
            yield
        finally:
            try:
                await self._deletions.release(claim)
            except K9Error as error:  # it runs out by itself
                _log.info("deletion not released", reason=str(error))
