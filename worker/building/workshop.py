"""The builds that one worker process works on, each in a slot.

They are tasks of the process, not of the queue's listener: where Redis goes away the listener ends
and is made anew, and the builds go on.
"""

import asyncio
import fcntl
import os
import shutil
import time
from pathlib import Path

from core import telemetry
from core.queue import BuildJob
from core.resources import Resources
from core.versions import LEASE
from worker.background import Background
from worker.building.making import CACHE
from worker.building.pipeline import BuildRun, claim_build
from worker.building.tidying import tidy

_HALF_REMOVED_S = 60.0

_log = telemetry.logger(__name__)


class Workshop:
    """The slots."""

    def __init__(self, resources: Resources, background: Background) -> None:
        self._resources = resources
        self._background = background
        self._slots = resources.settings.building.jobs_max
        self._taken = 0
        self._running: set[asyncio.Task[None]] = set()
        self.freed = asyncio.Event()
        """Set each time that a slot becomes free; whoever waits for it clears it."""

    @property
    def free(self) -> int:
        """Slots that nothing is in."""
        return self._slots - self._taken

    async def take(self, job: BuildJob) -> bool:
        """Claims a build and begins with it; returns as soon as it is claimed.

        False where no slot is free, or the build is another's or has ended.
        """
        if not self.free:
            return False
        self._taken += 1
        # A claim that is cancelled halfway may have been made: nobody would work on it.
        return await asyncio.shield(asyncio.create_task(self._take(job)))

    async def _take(self, job: BuildJob) -> bool:
        try:
            build = await claim_build(self._resources, job)
        except BaseException:
            self._give_free()
            raise
        if build is None:
            self._give_free()
            return False
        task = asyncio.create_task(BuildRun(self._resources, build, self._tidy_later).run())
        self._running.add(task)
        task.add_done_callback(self._ended)
        return True

    async def drain(self) -> None:
        """Waits until nothing is under way."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Gives every build back, for another worker to take."""
        for task in self._running:
            task.cancel()
        await self.drain()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._give_free()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a build's task broke", exc_info=task.exception())

    def _give_free(self) -> None:
        self._taken -= 1
        self.freed.set()

    def _tidy_later(self, model_version: str) -> None:
        self._background.later(
            f"tidy/{model_version}",
            self._resources.settings.building.version_grace_s,
            lambda: tidy(self._resources, model_version),
        )


def _age_s(directory: Path) -> float:
    try:
        return time.time() - directory.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def sweep(work_dir: Path) -> int:
    """Removes what builds of killed workers left on this disk; how many directories that were."""
    swept = 0
    for directory in work_dir.iterdir() if work_dir.is_dir() else ():
        if directory.name == CACHE or not directory.is_dir():
            continue
        try:
            handle = os.open(directory / LEASE, os.O_RDONLY)
        except FileNotFoundError:
            # Just made, or half removed by a worker that died over it.
            if _age_s(directory) > _HALF_REMOVED_S:
                shutil.rmtree(directory, ignore_errors=True)
                swept += 1
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its worker lives
        else:
            shutil.rmtree(directory, ignore_errors=True)
            swept += 1
        finally:
            os.close(handle)
    return swept
