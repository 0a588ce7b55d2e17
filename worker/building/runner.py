"""The builds that one worker process runs at the same time.

They are tasks of the process, not of the queue's listener: when Redis is lost the listener ends and
is started anew, and the builds go on.
"""

import asyncio
import re
import shutil
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

from core import telemetry, tracing
from core.files import file_lock
from core.index.cache import LEASE
from core.queue import BUILD_JOB, BuildJob
from core.resources import Resources
from worker import metrics
from worker.background import Background
from worker.building.attempt import BuildAttempt
from worker.building.garbage_collector import GarbageCollector

_HALF_REMOVED_S = 60.0
_CLAIM_TIMEOUT_S = 10.0
"""For the claims in flight when the worker stops; one unanswered by then is left to its lease."""
_BUILD_DIRECTORY = re.compile(r"[0-9a-f]{32}\.[0-9]+")
"""The name of a build's directory: its id and its fence."""

_log = telemetry.logger(__name__)


class BuildRunner:
    """Runs up to `jobs_max` builds."""

    def __init__(
        self, resources: Resources, background: Background, *, paused: bool = False
    ) -> None:
        """Starts builds at once, or if it is `paused` after `resume`."""
        self._resources = resources
        self._garbage = GarbageCollector(resources, background)
        self._slots = resources.settings.building.jobs_max
        self._used = 0
        self._claiming: set[asyncio.Task[bool]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False
        metrics.BUILD_SLOTS.set(self._slots)
        metrics.BUILDS_RUNNING.set_function(lambda: len(self._running))
        self._paused = paused
        self._reason = ""
        self.slot_freed = asyncio.Event()
        """Set whenever a build has ended; whoever waits for it clears it. A failed claim does not
        count: the next claim is likely to fail too."""

    @property
    def free_slots(self) -> int:
        """The number of builds that can be started now."""
        return 0 if self._paused else self._slots - self._used

    def pause(self, reason: str) -> None:
        """Starts no build until `resume`, and releases those that run."""
        if reason != self._reason:
            _log.error("work refused", reason=reason)
        self._paused, self._reason = True, reason
        for task in self._running:
            task.cancel()

    def resume(self) -> None:
        """Starts builds again."""
        self._paused, self._reason = False, ""

    async def start(self, job: BuildJob) -> bool:
        """Claims a build and starts it; returns once it is claimed.

        False when no slot is free, another worker has it, it has ended, or the worker stops.
        """
        if self._closed or not self.free_slots:
            return False
        self._used += 1
        # A claim that is cancelled in flight may succeed, and nobody would run the build.
        claiming = asyncio.create_task(self._claim(job))
        self._claiming.add(claiming)
        claiming.add_done_callback(self._claiming.discard)
        return await asyncio.shield(claiming)

    async def drain(self) -> None:
        """Waits until no build is running."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Releases every build for other workers; no further one starts."""
        self._closed = True
        await asyncio.sleep(0)  # a task cancelled before its first step would release nothing
        for task in self._running:
            task.cancel()
        if self._claiming:
            _, unanswered = await asyncio.wait(self._claiming, timeout=_CLAIM_TIMEOUT_S)
            for claim in unanswered:
                claim.cancel()
            await asyncio.gather(*unanswered, return_exceptions=True)
        await self.drain()

    async def _claim(self, job: BuildJob) -> bool:
        started = False
        try:
            with tracing.span(
                BUILD_JOB, "consumer", parent=job.trace, attributes={"k9.build_id": job.build_id}
            ):
                attempt = await BuildAttempt.claim(self._resources, job, self._garbage.request)
                if attempt is not None and self._closed:
                    await attempt.release("the worker was stopped")
                elif attempt is not None:
                    task = asyncio.create_task(attempt.run())
                    self._running.add(task)
                    task.add_done_callback(self._ended)
                    started = True
        finally:
            if not started:
                self._used -= 1
        return started

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._used -= 1
        self.slot_freed.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("unexpected error in a build's task", exc_info=task.exception())


def sweep(*work_dirs: Path) -> int:
    """Removes what builds of killed workers left in directories; returns the number of builds.

    Nothing else in the directories is touched.
    """
    swept = 0
    for directory in chain(*(path.iterdir() for path in work_dirs if path.is_dir())):
        if not _BUILD_DIRECTORY.fullmatch(directory.name) or not directory.is_dir():
            continue
        try:
            with file_lock(directory / LEASE, create=False):
                shutil.rmtree(directory, ignore_errors=True)
                swept += 1
        except BlockingIOError:
            continue  # its worker lives
        except FileNotFoundError:
            # Just created, or half removed by a worker that was killed meanwhile.
            with suppress(FileNotFoundError):
                if time.time() - directory.stat().st_mtime > _HALF_REMOVED_S:
                    shutil.rmtree(directory, ignore_errors=True)
                    swept += 1
    return swept
