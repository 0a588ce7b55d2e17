"""Enqueues what the tables show open and unclaimed. A task in every worker, no cron."""

import asyncio
import random
import time

from core import telemetry
from core.errors import K9Error
from core.models import Build
from core.resources import Resources

_log = telemetry.logger(__name__)


async def reconcile(resources: Resources) -> int:
    """One round; the number of builds and deletions that were enqueued.

    Enqueueing a build twice is harmless: its job id holds the fence, and only one claim succeeds.
    So is a deletion, which can be done any number of times.
    """
    waiting = [build for build in await resources.builds.list_open() if _waits(build)]
    for build in waiting:
        await resources.queue.enqueue(build.build_id, build.fence)
    telemetry.RECONCILED.inc(len(waiting))
    marked = await resources.users.list_marked()
    for user_id in marked:
        await resources.queue.enqueue_deletion(user_id, _era())
    return len(waiting) + len(marked)


async def reconcile_forever(resources: Resources) -> None:
    """A round every few seconds, spread out, until cancelled. A round that fails is logged."""
    every_s = resources.settings.building.reconcile_s
    while True:
        try:
            await reconcile(resources)
        except K9Error as error:
            _log.warning("reconcile failed", error=str(error))
        except Exception:  # noqa: BLE001 - it is what makes lost messages good: it must go on
            _log.exception("reconcile failed")
        await asyncio.sleep(every_s * random.uniform(0.75, 1.25))  # noqa: S311 - jitter


def _era() -> int:
    """A number that grows every minute: a job id that a killed worker left blocked ends with it."""
    return int(time.time()) // 60


def _waits(build: Build) -> bool:
    if build.status == "queued":
        return True
    return build.status == "running" and build.lease_until_ms < time.time_ns() // 1_000_000
