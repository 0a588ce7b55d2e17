"""The builds that one worker process works on, each in a slot.

They are tasks of the process, not of the queue's listener: where Redis goes away the listener ends
and is made anew, and the builds go on.
"""

import asyncio
import re
import shutil
import time
from pathlib import Path

from core import telemetry
from core.errors import K9Error
from core.files import file_lock
from core.index.cache import LEASE
from core.models import Build
from core.queue import BuildJob
from core.resources import Resources
from worker.background import Background
from worker.building.attempt import BuildRun, claim_build
from worker.building.garbage_collector import Tidying

_HALF_REMOVED_S = 60.0
_CLAIM_LIMIT_S = 10.0
"""For the claims under way when the worker stops; one that is not answered by then is left to its
lease."""
_OF_A_BUILD = re.compile(r"[0-9a-f]{32}\.[0-9]+")
"""The name of a build's directory: its id and its fence."""

_log = telemetry.logger(__name__)


class Workshop:
    """The slots."""

    def __init__(self, resources: Resources, background: Background) -> None:
        self._resources = resources
        self._tidying = Tidying(resources, background)
        self._slots = resources.settings.building.jobs_max
        self._taken = 0
        self._claiming: set[asyncio.Task[bool]] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False
        self.freed = asyncio.Event()
        """Set each time that a build has left its slot; whoever waits for it clears it. A claim
        that failed does not count: the next one is likely to fail as well."""

    @property
    def free(self) -> int:
        """Slots that nothing is in."""
        return self._slots - self._taken

    async def take(self, job: BuildJob) -> bool:
        """Claims a build and begins with it; returns as soon as it is claimed.

        False where no slot is free, or the build is another's or has ended, or the worker stops.
        """
        if self._closed or not self.free:
            return False
        self._taken += 1
        # A claim that is cancelled halfway may have been made: nobody would work on it.
        claiming = asyncio.create_task(self._take(job))
        self._claiming.add(claiming)
        claiming.add_done_callback(self._claiming.discard)
        return await asyncio.shield(claiming)

    async def _take(self, job: BuildJob) -> bool:
        begun = False
        try:
            build = await claim_build(self._resources, job)
            if build is not None and self._closed:
                await self._give_back(build)
            elif build is not None:
                self._begin(build)
                begun = True
        finally:
            if not begun:
                self._taken -= 1
        return begun

    def _begin(self, build: Build) -> None:
        task = asyncio.create_task(BuildRun(self._resources, build, self._tidying.ask).run())
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def _give_back(self, build: Build) -> None:
        """Lets another worker have at once what was claimed while this one stopped."""
        try:
            await self._resources.builds.release(
                build, "the worker was stopped", wait_s=0, fault=False
            )
        except K9Error as error:  # its lease runs out by itself
            _log.warning("claim not released", build_id=build.build_id, reason=str(error))
        else:
            await self._resources.queue.enqueue(build.build_id, build.fence)

    async def drain(self) -> None:
        """Waits until nothing is under way."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Gives every build back, for another worker to take; nothing begins any more."""
        self._closed = True
        await asyncio.sleep(0)  # one that is cancelled before its first step gives nothing back
        for task in self._running:
            task.cancel()
        if self._claiming:
            _, unanswered = await asyncio.wait(self._claiming, timeout=_CLAIM_LIMIT_S)
            for claim in unanswered:
                claim.cancel()
            await asyncio.gather(*unanswered, return_exceptions=True)
        await self.drain()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._taken -= 1
        self.freed.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a build's task broke", exc_info=task.exception())


def _age_s(directory: Path) -> float:
    try:
        return time.time() - directory.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def sweep(work_dir: Path) -> int:
    """Removes what builds of killed workers left on this disk; how many directories that were.

    What a build did not make is not touched: the directory may be shared with anything.
    """
    swept = 0
    for directory in work_dir.iterdir() if work_dir.is_dir() else ():
        if not _OF_A_BUILD.fullmatch(directory.name) or not directory.is_dir():
            continue
        try:
            with file_lock(directory / LEASE, create=False):
                shutil.rmtree(directory, ignore_errors=True)
                swept += 1
        except BlockingIOError:
            continue  # its worker lives
        except FileNotFoundError:
            # Just made, or half removed by a worker that died over it.
            if _age_s(directory) > _HALF_REMOVED_S:
                shutil.rmtree(directory, ignore_errors=True)
                swept += 1
    return swept
