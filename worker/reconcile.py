"""Sees to what the tables show open and nobody works on. A task in every worker, no cron.

A build is hinted to whichever worker has a slot free. Without Redis there are no hints: then each
worker takes what it has slots for straight from the table.
"""

import asyncio
import random
import time

from core import telemetry
from core.errors import K9Error
from core.models import Build, Model, now, parse_timestamp
from core.queue import BuildJob
from core.resources import Resources
from worker.background import Background
from worker.building.runner import Workshop
from worker.deletion import delete_user
from worker.model_deletion import delete_model

_UNHEARD_ROUNDS = 3

_log = telemetry.logger(__name__)


async def reconcile(
    resources: Resources, workshop: Workshop | None = None, background: Background | None = None
) -> int:
    """One round; the number of builds and deletions that wait.

    Hinting a build twice is harmless: its job id holds the fence, and only one claim succeeds. So
    is a deletion, of which one worker has the lease.
    """
    every_s = resources.settings.building.reconcile_s
    waiting = [build for build in await resources.builds.list_open() if _waits(build)]
    hinted = True
    for build in waiting:
        try:
            hinted = hinted and await resources.queue.enqueue(build.build_id, build.fence)
            # A worker that died between a hint and its claim leaves the hint's id taken for as
            # long as the longest job: who waits long is taken without one.
            unheard = not hinted or _waits_s(build) > _UNHEARD_ROUNDS * every_s
            if unheard and workshop is not None and workshop.free:
                await workshop.take(BuildJob(build.build_id, build.fence))
        except Exception:  # noqa: BLE001 - one build must not keep the others from being seen to
            _log.exception("an open build is passed over", build_id=build.build_id)
    telemetry.RECONCILED.inc(len(waiting))
    marked = await resources.deletions.list_marked()
    # In another order in each worker: each has room for some, and all of them begin with the first.
    for user_id in random.sample(marked, len(marked)):
        if background is None:
            await resources.queue.enqueue_deletion(user_id, int(time.time()) // 60)
        else:
            begin_deletion(resources, background, user_id)
    models = [model for model in await resources.models.list_models() if model.deleting_at]
    if background is not None:
        for model in models:
            begin_model_deletion(resources, background, model)
    return len(waiting) + len(marked) + len(models)


def begin_deletion(resources: Resources, background: Background, user_id: str) -> None:
    """Removes a user in the background, unless this process is about it already."""
    background.start(f"delete/{user_id}", lambda: delete_user(resources, user_id))


def begin_model_deletion(resources: Resources, background: Background, model: Model) -> None:
    """Goes on to remove a marked model version in the background, unless this process does."""
    background.start(f"delete-model/{model.model_version}", lambda: delete_model(resources, model))


async def reconcile_forever(
    resources: Resources, workshop: Workshop, background: Background
) -> None:
    """A round every few seconds, spread out, until cancelled. A round that fails is logged."""
    every_s = resources.settings.building.reconcile_s
    while True:
        workshop.freed.clear()
        try:
            await reconcile(resources, workshop, background)
        except K9Error as error:
            _log.warning("reconcile failed", error=str(error))
        except Exception:  # noqa: BLE001 - it makes lost messages good: it must go on
            _log.exception("reconcile failed")
        pause_s = every_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        if await resources.queue.ping():
            await asyncio.sleep(pause_s)
            continue
        try:  # nobody rings: a slot that becomes free looks for work itself
            async with asyncio.timeout(pause_s):
                await workshop.freed.wait()
        except TimeoutError:
            continue


def _waits_s(build: Build) -> float:
    """For how long nobody has worked on it, in seconds."""
    if build.status == "queued":
        return (now() - parse_timestamp(build.requested_at)).total_seconds()
    return time.time() - build.lease_until_ms / 1000


def _waits(build: Build) -> bool:
    if build.status == "queued":
        return True
    return build.status == "running" and build.lease_until_ms < time.time_ns() // 1_000_000
