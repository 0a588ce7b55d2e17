"""One build from claim to publish: pull → index → measure → matrix → compare → upload → publish.

The claim is a lease with a fence. Every write says both, so that a worker that slept through its
lease, or whose build was cancelled, changes nothing when it wakes.
"""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from core import names, telemetry
from core.errors import (
    BuildFailed,
    K9Error,
    LeaseLost,
    ModelBeingDeleted,
    ModelGone,
    NotFound,
    Pinned,
    Unavailable,
)
from core.index.cache import leased
from core.index.manifest import Manifest
from core.models import Build, Model, Progress, Stage
from core.queue import BuildJob
from core.repositories.tombstones import Tombstone
from core.request_count import count_requests
from core.resources import Resources
from core.retry import RetryPolicy
from worker.building.builder import Making
from worker.building.costs import Costs
from worker.building.verification import verify

_RETRY = RetryPolicy(first_s=1.0, max_s=60.0)
_PROGRESS_EVERY_S = 1.0
_RELEASE_S = 10.0
"""A worker that stops waits no longer for a DynamoDB that is away."""

_log = telemetry.logger(__name__)

Later = Callable[[str, tuple[Tombstone, ...]], None]
"""Called with a model version that was published, and the tombstones met: it can be tidied up."""


async def run_build(resources: Resources, job: BuildJob, later: Later = lambda *_: None) -> None:
    """Claims and runs one build. Whatever happens is written to the build, never raised."""
    build = await claim_build(resources, job)
    if build is not None:
        await BuildRun(resources, build, later).run()


async def claim_build(resources: Resources, job: BuildJob) -> Build | None:
    """Claims a build; None where it is another's, has ended, or cannot be claimed now."""
    try:
        return await resources.builds.claim(job.build_id, job.fence)
    except (LeaseLost, Unavailable) as error:
        _log.info("build not claimed", build_id=job.build_id, reason=str(error))
        return None


class BuildRun:
    """One worker's try at one build, or at one verification."""

    def __init__(self, resources: Resources, build: Build, later: Later = lambda *_: None) -> None:
        self._resources = resources
        self._settings = resources.settings.building
        self._build = build
        self._later = later
        self._costs = Costs(build)
        self._progress = Progress("pull")
        self._changed = asyncio.Event()
        work_dir = names.directory_of(self._settings.work_dir, resources.settings.environment)
        self._directory = work_dir / f"{build.build_id}.{build.fence}"
        self._tombstones: tuple[Tombstone, ...] = ()
        self._log = _log.bind(
            build_id=build.build_id, model_version=build.model_version, fence=build.fence
        )

    async def run(self) -> None:
        """Runs the build to its end, or gives it back for another try."""
        self._log.info("build claimed")
        if self._build.unreturned > self._settings.build_losses_max:
            # Its earlier tries took their workers down with them: a build must not do so for ever.
            await self._fail(f"gave up after {self._build.unreturned - 1} tries that were lost")
            return
        limit = asyncio.timeout(self._settings.build_timeout_s)
        try:
            async with limit:
                await self._with_heartbeat(self._work())
        except LeaseLost as error:
            # A heartbeat beside the publishing transaction finds the claim ended by that.
            if await self._is_published():
                await self._ended_well()
            else:
                self._log.warning("build left", reason=str(error))
        except BuildFailed as error:
            await self._fail(str(error))
        except (Pinned, ModelGone) as error:
            await self._fail(str(error), meant=True)
        except asyncio.CancelledError:
            await self._give_back("the worker was stopped", wait_s=0, fault=False)
            raise
        except Exception as error:  # noqa: BLE001 - a build must end or be tried again, whatever came
            if limit.expired():
                await self._fail(f"it took longer than {self._settings.build_timeout_s:g} s")
            else:
                await self._retry(error)
        else:
            await self._ended_well()
        finally:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def report(self, stage: Stage, done: int = 0, total: int = 0) -> None:
        """Tells how far the build is; written with the next heartbeat, a new stage at once."""
        if stage != self._progress.stage:
            self._changed.set()
        self._progress = Progress(stage, done, total)

    async def _work(self) -> None:
        self._directory.mkdir(parents=True)
        with leased(self._directory), count_requests() as requests:
            model = await self._model()
            making = Making(self._resources, self._build, self._directory, self.report, self._costs)
            if self._build.verifies is not None:
                found = await verify(self._resources, self._build, model, making)
                await self._resources.verifications.finish(self._build, found)
                return
            pulled = await making.pull(model)
            made = await making.make_beside_current(model, pulled)
            self._check_overlap(made.manifest)
            self._tombstones = pulled.tombstones
            self.report("upload")
            versions, fence = self._resources.versions, self._build.fence
            uploaded = await versions.upload(
                made.directory,
                made.manifest,
                fence,
                lambda done, total: self.report("upload", done, total),
            )
            # The manifest's own request is counted in, and so is the write of this very figure.
            cost = self._costs.summed(made.result, requests.requests + 1, uploaded)
            manifest = msgspec.structs.replace(uploaded, cost=cost)
            await versions.seal(manifest, fence)
            self.report("publish")
            await self._resources.promotions.publish(
                self._build, model, msgspec.to_builtins(manifest)
            )
            for stage, seconds in manifest.stages.items():
                telemetry.BUILD_SECONDS.labels(stage).observe(seconds)

    async def _model(self) -> Model:
        """The model version that the build is of.

        Raises:
            ModelGone: it is being deleted, or gone, be it that there is a later one of its name.
        """
        name = self._build.model_version
        try:
            model = await self._resources.models.get_model(name)
        except (ModelBeingDeleted, NotFound) as error:
            raise ModelGone(str(error)) from None
        if model.generation != self._build.generation:
            raise ModelGone(f"{name} was deleted and made anew since the build was requested")
        return model

    def _check_overlap(self, manifest: Manifest) -> None:
        """Stops a build that would replace the current one with something else altogether."""
        changes, least = manifest.changes, self._settings.overlap_min
        if changes is None or self._build.parameters.force or changes.kept >= least:
            return
        before = changes.common + changes.removed
        theirs = "" if changes.overlap is None else f", which keep {changes.overlap:.3f} of theirs"
        raise BuildFailed(
            f"it keeps {changes.kept:.3f} of the nearest neighbours in build {changes.build_id}, "
            f"below the {least:g} of K9_OVERLAP_MIN: it has {changes.common} of its {before} "
            f"products{theirs}. Check the ids and vectors, or ask for the build with force to "
            "replace it all the same"
        )

    async def _ended_well(self) -> None:
        if self._build.verifies is not None:
            self._log.info("verification done")
            return
        telemetry.BUILDS_ENDED.labels("published").inc()
        self._log.info("build published")
        self._later(self._build.model_version, self._tombstones)

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
            asked, told = loop.time(), self._progress
            try:
                # A try that hangs gives way to another: the worker's calls are patient. One that is
                # slow, behind the pages of a pull, is given its time.
                async with asyncio.timeout_at(min(until, asked + self._settings.lease_s / 2)):
                    await self._resources.builds.beat(self._build, told)
                written, until = told, asked + self._settings.lease_s
                self._costs.wrote()
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
                pause_s = min(_PROGRESS_EVERY_S, self._settings.heartbeat_s - waited)
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
            else:
                return

    async def _fail(self, error: str, *, meant: bool = False) -> None:
        """Ends the build as failed; `meant` where somebody decided so, and nobody need look."""
        (self._log.info if meant else self._log.error)("build failed", reason=error)
        try:
            await self._resources.builds.end(self._build, "failed", error)
        except K9Error as not_written:
            self._log.warning("build's end not written", reason=str(not_written))
        else:
            telemetry.BUILDS_ENDED.labels("failed").inc()

    async def _is_published(self) -> bool:
        """Whether this very try was published, though its answer was not heard."""
        try:
            build = await self._resources.builds.get_build(self._build.build_id)
        except K9Error as error:
            self._log.warning("build's end not read", reason=str(error))
            return False
        return (build.status, build.fence) == ("published", self._build.fence)

    async def _retry(self, error: Exception) -> None:
        """Gives the build back for a later try, or fails it when it had its tries."""
        if self._progress.stage == "publish" and await self._is_published():
            await self._ended_well()
            return
        reason = _reason(error)
        if not isinstance(error, K9Error):
            self._log.exception("build broke", exc_info=error)
        faults = self._build.faults + 1
        if faults >= self._settings.build_attempts_max:
            await self._fail(f"gave up after {faults} tries: {reason}")
            return
        await self._give_back(reason, wait_s=_RETRY.delay_s(faults), fault=True)

    async def _give_back(self, reason: str, *, wait_s: float, fault: bool) -> None:
        self._log.warning("build given back", reason=reason, wait_s=round(wait_s, 1))
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._resources.builds.release(
                    self._build, reason, wait_s=wait_s, fault=fault
                )
        except (K9Error, TimeoutError) as not_written:  # its lease runs out by itself
            self._log.warning("claim not released", reason=str(not_written))
            return
        if not fault:  # another worker may have it at once
            await self._resources.queue.enqueue(self._build.build_id, self._build.fence)


def _reason(error: Exception) -> str:
    """What went wrong, for whoever asked for the build; without paths, or what a library says."""
    if isinstance(error, K9Error):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"the worker's system says: {error.strerror}"
    return f"an unexpected {type(error).__name__}; the worker's log has it"
