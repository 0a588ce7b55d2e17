"""One build from claim to publish: pull → index → measure → matrix → upload → publish.

The claim is a lease with a fence. Every write says both, so that a worker that slept through its
lease changes nothing when it wakes.
"""

import asyncio
import math
import random
import shutil
import time
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from core import __version__, telemetry
from core.errors import BuildFailed, K9Error, LeaseLost, Unavailable
from core.models import Build, Model, Progress, Stage, now, timestamp
from core.queue import BuildJob
from core.resources import Resources
from core.vectors.manifest import MANIFEST, Manifest, decode_manifest
from core.vectors.rows import RowCounts, RowWriter
from worker.building.child import ChildJob, ChildLimits, ChildResult
from worker.building.process import run_child

_RETRY_FIRST_S, _RETRY_MAX_S = 1.0, 60.0
_PROGRESS_EVERY_S = 1.0
_ROW_OVERHEAD_BYTES = 160
"""Attribute names, times, dimension and shard of a row, beside its id and vector."""
_READ_UNIT_BYTES = 4096

_log = telemetry.logger(__name__)


async def run_build(resources: Resources, job: BuildJob) -> None:
    """Claims and runs one build. Whatever happens is written to the build, never raised."""
    try:
        build = await resources.builds.claim(job.build_id, job.fence)
    except (LeaseLost, Unavailable) as error:
        _log.info("build not claimed", build_id=job.build_id, reason=str(error))
        return
    await BuildRun(resources, build).run()


class BuildRun:
    """One worker's try at one build."""

    def __init__(self, resources: Resources, build: Build) -> None:
        self._resources = resources
        self._settings = resources.settings.building
        self._build = build
        self._progress = Progress("pull")
        self._changed = asyncio.Event()
        self._directory = self._settings.work_dir / f"{build.build_id}.{build.fence}"
        self._log = _log.bind(
            build_id=build.build_id, model_version=build.model_version, fence=build.fence
        )

    async def run(self) -> None:
        """Runs the build to its end, or gives it back for another try."""
        self._log.info("build claimed")
        if self._build.fence > self._settings.build_attempts_max:
            # Its earlier tries took their workers down with them: a build must not do so for ever.
            await self._fail(f"gave up after {self._build.fence - 1} tries that never came back")
            return
        try:
            async with asyncio.timeout(self._settings.build_timeout_s):
                await self._with_heartbeat(self._work())
        except LeaseLost as error:
            self._log.warning("build left", reason=str(error))
        except BuildFailed as error:
            await self._fail(str(error))
        except TimeoutError:
            await self._fail(f"it took longer than {self._settings.build_timeout_s:g} s")
        except asyncio.CancelledError:
            await self._give_back("the worker was stopped", wait_s=0)
            raise
        except Exception as error:  # noqa: BLE001 - a build must end or be tried again, whatever came
            await self._retry(error)
        else:
            telemetry.BUILDS_ENDED.labels("published").inc()
            self._log.info("build published")
        finally:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def report(self, stage: Stage, done: int = 0, total: int = 0) -> None:
        """Tells how far the build is; written with the next heartbeat, a new stage at once."""
        if stage != self._progress.stage:
            self._changed.set()
        self._progress = Progress(stage, done, total)

    async def _work(self) -> None:
        started = time.perf_counter()
        model = await self._resources.models.get_model(self._build.model_version)
        rows_dir, out_dir = self._directory / "rows", self._directory / "version"
        for directory in (rows_dir, out_dir):
            directory.mkdir(parents=True)
        lag = timedelta(seconds=self._settings.watermark_lag_s)
        watermark = timestamp(now() - lag)
        requests_before = self._resources.objects.requests
        counts, row_bytes = await self._pull(model, rows_dir)
        pulled_s = time.perf_counter() - started
        job = self._child_job(model, rows_dir, out_dir, watermark)
        job_file = self._directory / "job.json"
        job_file.write_bytes(msgspec.json.encode(job))
        result = await run_child(job_file, self._report_progress)
        manifest = decode_manifest((out_dir / MANIFEST).read_bytes())
        manifest = msgspec.structs.replace(
            manifest,
            stages={"pull": round(pulled_s, 3), **manifest.stages},
            cost=_cost(counts, row_bytes, result),
        )
        (out_dir / MANIFEST).write_bytes(manifest.encode())
        await self._upload(out_dir, manifest)
        cost = {
            **manifest.cost,
            "s3_requests": self._resources.objects.requests - requests_before,
        }
        await self._publish(model, msgspec.structs.replace(manifest, cost=cost))

    async def _pull(self, model: Model, rows_dir: Path) -> tuple[RowCounts, int]:
        """Streams every row to disk; the counts, and the bytes that DynamoDB read for it."""
        row_bytes = 0
        self.report("pull")
        with RowWriter(rows_dir, model.dimension) as writer:
            pulled = 0
            async for page in self._resources.embeddings.get_embeddings_by_model(model):
                await asyncio.to_thread(writer.append, page)
                pulled += len(page)
                row_bytes += sum(
                    len(row.product_id) + len(row.vector or b"") + _ROW_OVERHEAD_BYTES
                    for row in page
                )
                self.report("pull", pulled)
            return writer.close(), row_bytes

    def _child_job(self, model: Model, rows: Path, out: Path, watermark: str) -> ChildJob:
        return ChildJob(
            rows_dir=str(rows),
            out_dir=str(out),
            model_version=model.model_version,
            build_id=self._build.build_id,
            epoch=model.epoch,
            built_at=timestamp(now()),
            watermark=watermark,
            dimension=model.dimension,
            metric=model.metric,
            parameters=self._build.parameters,
            limits=ChildLimits(
                index_bytes_max=self._settings.index_bytes_max,
                matrix_exact_rows_max=self._settings.matrix_exact_rows_max,
                threads=self._settings.index_threads,
            ),
            k9_version=__version__,
        )

    def _report_progress(self, progress: Progress) -> None:
        self.report(progress.stage, progress.done, progress.total)

    async def _upload(self, out_dir: Path, manifest: Manifest) -> None:
        self.report("upload")
        await self._resources.versions.publish(
            out_dir,
            manifest,
            self._build.fence,
            lambda done, total: self.report("upload", done, total),
        )

    async def _publish(self, model: Model, manifest: Manifest) -> None:
        self.report("publish")
        await self._resources.builds.publish(self._build, model, msgspec.to_builtins(manifest))
        for stage, seconds in manifest.stages.items():
            telemetry.BUILD_SECONDS.labels(stage).observe(seconds)

    async def _with_heartbeat(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs the work for as long as the lease holds; losing it cancels the work."""
        working = asyncio.create_task(work)
        beating = asyncio.create_task(self._beat())
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            (working if working.done() else beating).result()
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    async def _beat(self) -> None:
        """Renews the lease until cancelled.

        Raises:
            LeaseLost: it is another's, or could not be renewed in time.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.lease_s
        written = None
        while True:
            asked = loop.time()
            try:
                async with asyncio.timeout_at(until):
                    await self._resources.builds.beat(self._build, self._progress)
                written, until = self._progress, asked + self._settings.lease_s
            except (Unavailable, TimeoutError):
                if loop.time() >= until:
                    raise LeaseLost("the lease could not be renewed in time") from None
            await self._next_beat(asked, written)

    async def _next_beat(self, asked: float, written: Progress | None) -> None:
        """Waits for the next heartbeat: a new stage ends the wait, progress shortens it."""
        loop = asyncio.get_running_loop()
        while (waited := loop.time() - asked) < self._settings.heartbeat_s:
            if waited >= _PROGRESS_EVERY_S and self._progress != written:
                return
            self._changed.clear()
            try:
                async with asyncio.timeout(min(_PROGRESS_EVERY_S, self._settings.heartbeat_s)):
                    await self._changed.wait()
            except TimeoutError:
                continue
            return

    async def _fail(self, error: str) -> None:
        self._log.error("build failed", reason=error)
        try:
            await self._resources.builds.end(self._build, "failed", error)
        except K9Error as not_written:
            self._log.warning("build's end not written", reason=str(not_written))
        else:
            telemetry.BUILDS_ENDED.labels("failed").inc()

    async def _retry(self, error: Exception) -> None:
        """Gives the build back for a later try, or fails it when it had its tries."""
        known = isinstance(error, K9Error)
        reason = str(error) if known else f"an unexpected {type(error).__name__}"
        if not known:
            self._log.exception("build broke", exc_info=error)
        if self._build.fence >= self._settings.build_attempts_max:
            await self._fail(f"gave up after {self._build.fence} tries: {reason}")
            return
        backoff_s = min(_RETRY_MAX_S, _RETRY_FIRST_S * 2 ** (self._build.fence - 1))
        await self._give_back(reason, wait_s=random.uniform(0, backoff_s))  # noqa: S311 - jitter

    async def _give_back(self, reason: str, *, wait_s: float) -> None:
        self._log.warning("build given back", reason=reason, wait_s=round(wait_s, 1))
        try:
            await self._resources.builds.release(self._build, reason, wait_s=wait_s)
        except K9Error as not_written:  # its lease runs out by itself
            self._log.warning("claim not released", reason=str(not_written))


def _cost(counts: RowCounts, row_bytes: int, child: ChildResult) -> dict[str, float]:
    """What the build took; a query through an index reads at half a unit for 4 KB."""
    return {
        "rows_read": counts.rows,
        "read_units": math.ceil(row_bytes / _READ_UNIT_BYTES) / 2,
        "processor_s": round(child.processor_s, 3),
        "peak_memory_bytes": child.peak_bytes,
    }
