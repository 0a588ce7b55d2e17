"""The builds that one worker runs at the same time, and what killed ones leave on its disk."""

import re
import shutil
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

from core import telemetry
from core.files import file_lock
from core.index.cache import LEASE
from core.queue import BUILD_JOB, BuildJob
from core.resources import Resources
from worker import metrics
from worker.background import Background
from worker.building.attempt import BuildAttempt
from worker.building.garbage_collector import GarbageCollector
from worker.slots import Slots

_HALF_REMOVED_S = 60.0
_BUILD_DIRECTORY = re.compile(r"[0-9a-f]{32}\.[0-9]+")
"""The name of a build's or import's directory: its id and its fence."""

_log = telemetry.logger(__name__)


class BuildRunner(Slots[BuildJob]):
    """Runs up to `jobs_max` builds."""

    def __init__(
        self, resources: Resources, background: Background, *, paused: bool = False
    ) -> None:
        """Starts builds at once, or if it is `paused` after `resume`."""
        garbage = GarbageCollector(resources, background)
        slots = resources.settings.building.jobs_max

        async def claim(job: BuildJob) -> BuildAttempt | None:
            return await BuildAttempt.claim(resources, job, garbage.request)

        super().__init__(slots, BUILD_JOB, "build_id", claim, paused=paused)
        metrics.BUILD_SLOTS.set(slots)
        metrics.BUILDS_RUNNING.set_function(lambda: self.running)


def sweep(*work_dirs: Path) -> int:
    """Removes what builds and imports of killed workers left in directories; returns their number.

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
