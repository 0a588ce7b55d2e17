"""One attempt at a build, from its claim to its end: build, upload, publish.

The claim is a lease with a fencing token, `Build.fence`. Every write is conditional on it, so that
a worker that outlives its lease, or whose build was cancelled, changes nothing.
"""

import asyncio
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from time import perf_counter
from typing import Self

import msgspec

from core import names, telemetry, tracing
from core.aws_calls import count_requests
from core.errors import (
    BuildFailed,
    K9Error,
    LeaseLost,
    ModelBeingDeleted,
    ModelGone,
    NewerFormat,
    NotFound,
    Pinned,
    Unavailable,
)
from core.index.cache import leased
from core.models import Build, Model, Progress, now, parse_timestamp
from core.queue import BuildJob
from core.resources import Resources
from core.retry import RetryPolicy
from core.vectors.changes import Changes
from worker import metrics
from worker.building.builder import VersionBuilder, assemble_manifest
from worker.building.costs import BuildCosts
from worker.building.reuse import reuse_current
from worker.building.verification import verify
from worker.heartbeat import Heartbeat
from worker.reasons import reason_of

_BACKOFF = RetryPolicy(first_s=1.0, max_s=60.0)
_NEWER_WAIT_S = 60.0
_RELEASE_TIMEOUT_S = 10.0
"""A worker that stops does not wait longer for a DynamoDB that is unavailable."""

_log = telemetry.logger(__name__)

Published = Callable[[str, Mapping[str, str]], None]
"""Called with the model version of a published build, and `PullResult.tombstones`."""


class BuildAttempt:
    """One worker's attempt at a build, or at a verification."""

    def __init__(
        self, resources: Resources, build: Build, published: Published = lambda *_: None
    ) -> None:
        self._resources = resources
        self._settings = resources.settings.building
        self._build = build
        self._published = published
        self._costs = BuildCosts(build)
        self._progress = Progress("pull")
        self._heartbeat = Heartbeat(
            self._renew, lease_s=self._settings.lease_s, heartbeat_s=self._settings.heartbeat_s
        )
        work_dir = names.directory_of(self._settings.work_dir, resources.settings.environment)
        self._directory = work_dir / f"{build.build_id}.{build.fence}"
        self._tombstones: Mapping[str, str] = {}
        self._spans = tracing.StageSpans()
        self._log = _log.bind(
            build_id=build.build_id, model_version=build.model_version, fence=build.fence
        )

    @classmethod
    async def claim(
        cls, resources: Resources, job: BuildJob, published: Published = lambda *_: None
    ) -> Self | None:
        """Claims a build; None when another worker has it, it has ended, or DynamoDB is away."""
        try:
            build = await resources.builds.claim(job.build_id, job.fence)
        except (LeaseLost, Unavailable) as error:
            _log.info("build not claimed", build_id=job.build_id, reason=str(error))
            return None
        if build.fence == 1 and build.verifies is None:
            metrics.BUILD_QUEUED_SECONDS.observe(_since_request_s(build))
        return cls(resources, build, published)

    async def run(self) -> None:
        """Runs the build to its end, or releases it for another attempt.

        Whatever happens is written to the build; only cancellation is raised.
        """
        build = self._build
        telemetry.join_logs(build.request_id, build_id=build.build_id)
        what = "verification" if build.verifies is not None else "build"
        attributes: tracing.Attributes = {
            "k9.build_id": build.build_id,
            "k9.model_version": build.model_version,
            "k9.fence": build.fence,
        }
        with tracing.span(what, attributes=attributes):
            await self._run()

    async def _run(self) -> None:
        self._log.info("build claimed")
        if self._build.unreturned > self._settings.build_losses_max:
            # Its earlier attempts took their workers down: do not let it go on for ever.
            await self._fail(f"gave up after {self._build.unreturned - 1} attempts that were lost")
            return
        limit = asyncio.timeout(self._settings.build_timeout_s)
        try:
            async with limit:
                await self._heartbeat.run(self._work())
        except LeaseLost as error:
            # A heartbeat concurrent with the publishing transaction finds the claim ended by it.
            if await self._is_published():
                self._succeed()
            else:
                self._log.warning("build lost", reason=str(error))
                tracing.fail("LeaseLost")
        except BuildFailed as error:
            await self._fail(str(error))
        except (Pinned, ModelGone) as error:
            await self._fail(str(error), expected=True)
        except asyncio.CancelledError:
            await self.release("the worker was stopped")
            raise
        except Exception as error:  # noqa: BLE001 - a build must end or be retried, whatever happens
            if limit.expired():
                await self._fail(f"it took longer than {self._settings.build_timeout_s:g} s")
            else:
                await self._retry(error)
        else:
            self._succeed()
        finally:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def release(self, reason: str, *, wait_s: float = 0.0, fault: bool = False) -> None:
        """Releases the claim; another worker may take it after `wait_s`.

        A `fault` counts towards the attempts that a build has.
        """
        self._log.warning("build released", reason=reason, wait_s=round(wait_s, 1))
        metrics.BUILD_ATTEMPTS_RELEASED.labels("fault" if fault else "stopped").inc()
        tracing.fail("BuildReleased")
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await self._resources.builds.release(
                    self._build, reason, wait_s=wait_s, fault=fault
                )
        except (K9Error, TimeoutError) as error:  # its lease will expire
            self._log.warning("build not released", reason=str(error))
            return
        if not fault:
            build = self._build
            await self._resources.queue.enqueue(build.build_id, build.fence, build.trace)

    def report(self, progress: Progress) -> None:
        """Written with the next heartbeat; a new stage at once."""
        new_stage = progress.stage != self._progress.stage
        if new_stage:
            self._spans.begin(progress.stage)
        self._progress = progress
        self._heartbeat.report(new_stage=new_stage)

    async def _work(self) -> None:
        self._directory.mkdir(parents=True)
        self._spans.begin(self._progress.stage)
        with closing(self._spans), leased(self._directory), count_requests() as requests:
            model = await self._model()
            builder = VersionBuilder(
                self._resources, self._build, model, self._directory, self._costs, self.report
            )
            if self._build.verifies is not None:
                verification = await verify(self._resources, self._build, builder)
                await self._resources.verifications.finish(self._build, verification)
                return
            made = await reuse_current(builder)
            if made is None:
                pulled = await builder.pull()
                self._tombstones = pulled.tombstones
                made = pulled, await builder.build(pulled, await builder.fetch_current())
            pulled, built = made
            self._check_overlap(built.output.changes)
            self.report(Progress("upload"))
            versions, build = self._resources.versions, self._build
            prefix = names.version_prefix(
                self._resources.settings.environment,
                build.model_version,
                build.build_id,
                build.fence,
            )
            began = perf_counter()
            files = await versions.upload(prefix, built.directory, built.output.files, self.report)
            manifest = assemble_manifest(build, model, pulled, built, files)
            size, s3_requests = len(msgspec.json.encode(manifest)), requests.requests + 1
            cost = self._costs.total(built.output.usage, s3_requests, size)
            manifest = msgspec.structs.replace(manifest, cost=cost)
            await versions.put_manifest(prefix, manifest)
            uploaded = perf_counter()
            self.report(Progress("publish"))
            await self._resources.promotions.publish(build, model, msgspec.to_builtins(manifest))
            last = {"upload": uploaded - began, "publish": perf_counter() - uploaded}
            for stage, seconds in {**manifest.stages, **last}.items():
                metrics.BUILD_SECONDS.labels(stage).observe(seconds)

    async def _model(self) -> Model:
        """The model version of the build.

        Raises:
            ModelGone: it is deleted or being deleted, even if its name is in use again.
        """
        name = self._build.model_version
        try:
            model = await self._resources.models.get_model(name)
        except (ModelBeingDeleted, NotFound) as error:
            raise ModelGone(str(error)) from None
        if model.generation != self._build.generation:
            raise ModelGone(f"{name} was deleted and created again since the build was requested")
        return model

    def _check_overlap(self, changes: Changes | None) -> None:
        """Fails a build whose neighbours have too little in common with the current build's."""
        least = self._settings.overlap_min
        if changes is None or self._build.parameters.force or changes.kept >= least:
            return
        before = changes.common + changes.removed
        theirs = "" if changes.overlap is None else f", which keep {changes.overlap:.3f} of theirs"
        raise BuildFailed(
            f"it keeps {changes.kept:.3f} of the nearest neighbours in build {changes.build_id}, "
            f"below the {least:g} of K9_OVERLAP_MIN: it has {changes.common} of its {before} "
            f"products{theirs}. Check the ids and vectors, or request the build with force to "
            "publish it all the same"
        )

    async def _renew(self) -> None:
        await self._resources.builds.beat(self._build, self._progress)
        self._costs.count_heartbeat()

    def _succeed(self) -> None:
        if self._build.verifies is not None:
            self._log.info("verification finished")
            return
        metrics.BUILDS_ENDED.labels("published").inc()
        metrics.BUILD_TOTAL_SECONDS.observe(_since_request_s(self._build))
        self._log.info("build published")
        self._published(self._build.model_version, self._tombstones)

    async def _fail(self, error: str, *, expected: bool = False) -> None:
        """Ends the build as failed; `expected` when an operator's action caused it."""
        (self._log.info if expected else self._log.error)("build failed", reason=error)
        tracing.fail("BuildFailed")
        try:
            await self._resources.builds.end(self._build, "failed", error)
        except K9Error as not_written:
            self._log.warning("build's end not written", reason=str(not_written))
        else:
            metrics.BUILDS_ENDED.labels("failed").inc()

    async def _retry(self, error: Exception) -> None:
        """Releases the build for a later attempt, or fails it after the last one."""
        if self._progress.stage == "publish" and await self._is_published():
            self._succeed()
            return
        reason = reason_of(error)
        if isinstance(error, K9Error):
            self._log.warning("build interrupted", reason=str(error))
        else:
            self._log.exception("unexpected error in a build", exc_info=error)
        if isinstance(error, NewerFormat):
            # No later attempt of this process succeeds; one of an upgraded process may.
            await self.release(reason, wait_s=_NEWER_WAIT_S)
            return
        faults = self._build.faults + 1
        if faults >= self._settings.build_attempts_max:
            await self._fail(f"gave up after {faults} attempts: {reason}")
            return
        await self.release(reason, wait_s=_BACKOFF.delay_s(faults), fault=True)

    async def _is_published(self) -> bool:
        """Whether this attempt was published, although the response was lost."""
        try:
            build = await self._resources.builds.get_build(self._build.build_id)
        except K9Error as error:
            self._log.warning("build's end not read", reason=str(error))
            return False
        return (build.status, build.fence) == ("published", self._build.fence)


def _since_request_s(build: Build) -> float:
    """By two machines' clocks: never below 0."""
    return max(0.0, (now() - parse_timestamp(build.requested_at)).total_seconds())
