"""A version's files from a model version's rows: pull, then the child that does the heavy work."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from core import __version__, telemetry
from core.errors import Corrupt, NotFound
from core.index.cache import leased
from core.index.files import IDS, NEIGHBORS
from core.index.manifest import MANIFEST, Manifest, RecentRows, decode_manifest
from core.index.rows import RowWriter
from core.models import Build, Model, Progress, Stage, now, timestamp
from core.repositories.tombstones import Tombstone
from core.resources import Resources
from core.versions import VersionRecord, VersionStore
from worker.building.build_process import ChildJob, ChildLimits, ChildResult, Previous
from worker.building.costs import Costs
from worker.building.launcher import run_child
from worker.building.pull_digest import Recent

CACHE: Final = "previous"
"""Where in the working directory the versions are that new ones are compared with."""
_TOMBSTONES_MAX: Final = 100_000
"""Noted in one pull; those beyond are met again by the next."""

_log = telemetry.logger(__name__)

Tell = Callable[[Stage, int, int], None]
"""Called with the stage, what is done and the total."""


class Pulled(msgspec.Struct, frozen=True):
    """What a pull met."""

    directory: Path
    watermark: str
    pulled_at: str
    seconds: float
    tombstones: tuple[Tombstone, ...]
    """The first of them."""
    recent: RecentRows
    changed: int
    """Rows of the moment asked about, and later."""


class Made(msgspec.Struct, frozen=True):
    """A version on this disk."""

    directory: Path
    manifest: Manifest
    result: ChildResult


class Making:
    """Makes the files of one build, in a directory of its own."""

    def __init__(
        self, resources: Resources, build: Build, directory: Path, tell: Tell, costs: Costs
    ) -> None:
        self._resources = resources
        self._settings = resources.settings.building
        self._build = build
        self._directory = directory
        self._tell = tell
        self._costs = costs

    async def pull(self, model: Model, earlier: Manifest | None = None) -> Pulled:
        """Streams every row to disk.

        `recent` notes what changed after the watermark, `changed` counts what did after the pull:
        of this pull, or of an earlier version that it is to be held against.
        """
        began = time.perf_counter()
        pulled_at = now()
        watermark = timestamp(pulled_at - timedelta(seconds=self._settings.watermark_lag_s))
        rows_dir = self._directory / "rows"
        tombstones: list[Tombstone] = []
        recent = (
            Recent(watermark, timestamp(pulled_at))
            if earlier is None
            else Recent(earlier.watermark, earlier.pulled_at or earlier.watermark)
        )
        self._tell("pull", 0, 0)
        with RowWriter(rows_dir, model.dimension) as writer:
            async for page in self._resources.embeddings.get_embeddings_by_model(model):
                await asyncio.to_thread(writer.append, page)
                self._costs.pulled(page)
                recent.append(page)
                for row in page:
                    if row.deleted_at is not None and len(tombstones) < _TOMBSTONES_MAX:
                        tombstones.append(Tombstone(row.product_id, row.deleted_at))
                self._tell("pull", self._costs.rows, 0)
            writer.close()
        return Pulled(
            rows_dir,
            watermark,
            timestamp(pulled_at),
            time.perf_counter() - began,
            tuple(tombstones),
            recent.noted(),
            recent.changed,
        )

    async def make(
        self, model: Model, pulled: Pulled, previous: Previous | None, threads: int | None = None
    ) -> Made:
        """Has the child make the files.

        Raises:
            BuildFailed: it cannot succeed as asked.
            ChildCrashed: the child ended without a word.
        """
        out_dir = self._directory / "version"
        job = ChildJob(
            rows_dir=str(pulled.directory),
            out_dir=str(out_dir),
            model_version=model.model_version,
            build_id=self._build.build_id,
            epoch=model.epoch,
            generation=model.generation,
            built_at=timestamp(now()),
            watermark=pulled.watermark,
            pulled_at=pulled.pulled_at,
            dimension=model.dimension,
            metric=model.metric,
            parameters=self._build.parameters,
            limits=ChildLimits(
                index_bytes_max=self._settings.index_bytes_max,
                matrix_exact_rows_max=self._settings.matrix_exact_rows_max,
                threads=threads or self._settings.index_threads,
            ),
            k9_version=__version__,
            previous=previous,
        )
        job_file = self._directory / "job.json"
        job_file.write_bytes(msgspec.json.encode(job))
        result = await run_child(job_file, self._report)
        manifest = decode_manifest((out_dir / MANIFEST).read_bytes())
        stages = {"pull": round(pulled.seconds, 3), **manifest.stages}
        noted = msgspec.structs.replace(manifest, stages=stages, recent=pulled.recent)
        return Made(out_dir, noted, result)

    async def make_beside_current(self, model: Model, pulled: Pulled) -> Made:
        """Has the child make the files, and compare them with those of the current version."""
        cache_dir = self._settings.work_dir / CACHE
        environment = self._resources.settings.environment
        store = VersionStore(self._resources.objects, environment, cache_dir, _compared, spares=0)
        if model.current_build_id is None:
            return await self.make(model, pulled, None)
        try:
            current = await self._resources.builds.get_build(model.current_build_id)
            record = VersionRecord.of(current)
            directory, manifest = await store.ensure(record)
        except (NotFound, Corrupt) as error:
            # It can be made again, this build may be about to; what it held is not known any more.
            _log.warning(
                "nothing to compare with", build_id=model.current_build_id, reason=str(error)
            )
            return await self.make(model, pulled, None)
        if manifest.data != model.data:
            return await self.make(model, pulled, None)
        with leased(directory):
            previous = Previous(str(directory), manifest.build_id)
            made = await self.make(model, pulled, previous)
        await store.prune(record)
        return made

    def _report(self, progress: Progress) -> None:
        self._tell(progress.stage, progress.done, progress.total)


def _compared(manifest: Manifest) -> tuple[str, ...]:
    return tuple(name for name in (IDS, NEIGHBORS) if name in manifest.files)
