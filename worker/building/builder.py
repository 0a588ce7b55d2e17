"""A model version's rows pulled to disk, a version's files built from them, and its manifest."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from core import telemetry
from core.errors import Corrupt, NewerFormat, NotFound
from core.index.attribute_rows import AttributesWriter
from core.index.files import IDS, NEIGHBORS
from core.index.manifest import FORMAT, FORMAT_NEAR_COPIES, FileInfo, Manifest, RecentRows
from core.index.rows import RowWriter
from core.index.version import MAPPED
from core.models import Build, Model, Progress, ProgressCallback, now, timestamp
from core.resources import Resources
from core.vectors.parameters import IndexLimits
from core.versions import VersionRecord
from worker.building.costs import BuildCosts
from worker.building.launcher import run_build_process, thread_count
from worker.building.protocol import BuildOutput, BuildSpec, PreviousVersion
from worker.building.pull_digest import PullDigest

_TOMBSTONES_MAX: Final = 100_000
"""Remembered in one pull; the next one meets the others again."""

_log = telemetry.logger(__name__)


class PullResult(msgspec.Struct, frozen=True):
    """The rows and attributes on disk, and what was noticed while they were read."""

    directory: Path
    watermark: str
    pulled_at: str
    seconds: float
    recent: RecentRows
    recent_attributes: RecentRows | None = None
    tombstones: Mapping[str, str] = {}
    """Product id → when it was deleted, of the first of them."""
    rows_changed: int = 0
    """Rows and attributes changed since the pull began, or since that of the version to compare
    with."""


class BuildResult(msgspec.Struct, frozen=True):
    """A version's files on disk, without the manifest."""

    directory: Path
    built_at: str
    output: BuildOutput


@dataclass(frozen=True)
class VersionBuilder:
    """Builds the files of one version, in a directory of its own."""

    resources: Resources
    requested: Build
    model: Model
    directory: Path
    costs: BuildCosts
    report: ProgressCallback

    async def pull(self, earlier: Manifest | None = None) -> PullResult:
        """Streams every row to disk, and then all attributes, which are no older than the rows.

        With an `earlier` version, what is recent or changed counts from its watermark and pull.
        """
        began = time.perf_counter()
        pulled_at, watermark = self.begin_pull()
        directory = self.directory / "rows"
        tombstones: dict[str, str] = {}
        since = (watermark, pulled_at)
        if earlier is not None:
            since = earlier.watermark, earlier.pulled_at or earlier.watermark
        digest, attributes = PullDigest(*since), PullDigest(*since)
        with closing(RowWriter(directory, self.model.dimension)) as writer:
            async for page in self.resources.embeddings.get_embeddings_by_model(self.model):
                await asyncio.to_thread(writer.append, page)
                self.costs.count_page(page)
                digest.append(page)
                for row in page:
                    if row.deleted_at is not None and len(tombstones) < _TOMBSTONES_MAX:
                        tombstones[row.product_id] = row.deleted_at
                self.report(Progress("pull", self.costs.items))
        if self.model.has_attributes:
            await self.pull_attributes(directory, attributes)
        return PullResult(
            directory=directory,
            watermark=watermark,
            pulled_at=pulled_at,
            seconds=time.perf_counter() - began,
            recent=digest.recent_rows(),
            recent_attributes=attributes.recent_rows(),
            tombstones=tombstones,
            rows_changed=digest.changed + attributes.changed,
        )

    def begin_pull(self) -> tuple[str, str]:
        """The time at which a pull begins, and the watermark of what it finds."""
        self.report(Progress("pull"))
        moment = now()
        lag = timedelta(seconds=self.resources.settings.building.watermark_lag_s)
        return timestamp(moment), timestamp(moment - lag)

    async def pull_attributes(self, directory: Path, digest: PullDigest) -> None:
        """Streams all attributes to files in a directory, which is there."""
        with closing(AttributesWriter(directory)) as writer:
            async for page in self.resources.attributes.changed_since(self.model, ""):
                await asyncio.to_thread(writer.append, page)
                self.costs.count_attributes(page)
                digest.append_attributes(page)
                self.report(Progress("pull", self.costs.items))

    async def build(
        self,
        pulled: PullResult,
        previous: PreviousVersion | None = None,
        threads: int | None = None,
    ) -> BuildResult:
        """Builds the files in a process of its own.

        Raises:
            BuildFailed: the build cannot succeed as requested.
            BuildProcessCrashed: the process ended without a result.
        """
        spec = self._spec(pulled, self.directory / "version", threads)
        return await self._run(msgspec.structs.replace(spec, previous=previous))

    async def build_columns(self, pulled: PullResult, directory: Path) -> BuildResult:
        """Builds the columns of a version anew, whose files and manifest are in a directory.

        Raises:
            BuildFailed: the attributes are larger than allowed.
            BuildProcessCrashed: the process ended without a result.
        """
        spec = self._spec(pulled, directory)
        return await self._run(msgspec.structs.replace(spec, columns_only=True))

    def _spec(self, pulled: PullResult, out: Path, threads: int | None = None) -> BuildSpec:
        settings = self.resources.settings.building
        return BuildSpec(
            rows_dir=str(pulled.directory),
            out_dir=str(out),
            model_version=self.model.model_version,
            dimension=self.model.dimension,
            metric=self.model.metric,
            threads=thread_count(threads or settings.index_threads),
            parameters=self.requested.parameters,
            index_limits=IndexLimits(index_bytes_max=settings.index_bytes_max),
            columns_bytes_max=settings.columns_bytes_max,
            matrix_exact_rows_max=settings.matrix_exact_rows_max,
        )

    async def _run(self, spec: BuildSpec) -> BuildResult:
        built_at = timestamp(now())
        output = await run_build_process(spec, self.directory / "spec.json", self.report)
        return BuildResult(Path(spec.out_dir), built_at, output)

    async def fetch_current(self) -> PreviousVersion | None:
        """Downloads the current version to compare with; None if there is none."""
        directory = self.directory / "previous"
        manifest = await self.fetch_files(directory, (IDS, NEIGHBORS))
        if manifest is None or manifest.data != self.model.data:
            return None
        return PreviousVersion(str(directory), manifest.build_id)

    async def fetch_files(self, directory: Path, files: Sequence[str]) -> Manifest | None:
        """Downloads the manifest and some files of the current version; None where it cannot."""
        build_id = self.model.current_build_id
        if build_id is None:
            return None
        try:
            record = VersionRecord.of(await self.resources.builds.get_build(build_id))
            return await self.resources.versions.fetch(record, directory, files)
        except (NotFound, Corrupt, NewerFormat) as error:
            # Its files can be built again, perhaps by this build; there is nothing to use now.
            _log.warning("current version not available", build_id=build_id, reason=str(error))
            return None


def assemble_manifest(
    build: Build,
    model: Model,
    pulled: PullResult,
    built: BuildResult,
    files: Mapping[str, FileInfo],
) -> Manifest:
    """The manifest of a version: all but what it cost."""
    output = built.output
    return Manifest(
        model_version=model.model_version,
        build_id=build.build_id,
        epoch=model.epoch,
        built_at=built.built_at,
        watermark=pulled.watermark,
        dimension=model.dimension,
        metric=model.metric,
        counts=output.counts,
        parameters=build.parameters,
        index=output.index,
        recall=output.recall,
        filtered_recall=output.filtered_recall,
        matrix=output.matrix,
        files=dict(files),
        resident_bytes=sum(info.bytes for name, info in files.items() if name in MAPPED),
        software=output.software,
        stages={"pull": round(pulled.seconds, 3), **output.stages},
        pulled_at=pulled.pulled_at,
        recent=pulled.recent,
        changes=output.changes,
        generation=model.generation,
        rows_with_attributes=output.rows_with_attributes,
        recent_attributes=pulled.recent_attributes,
        reused_build_id=output.reused_build_id,
        format=FORMAT_NEAR_COPIES if output.index.near_copies else FORMAT,
    )
