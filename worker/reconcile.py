"""Reconciles the tables with what is being worked on. A task in every worker, not a cron job.

An open build or import that nobody works on is enqueued for a worker with a free slot. Without
Redis, each worker claims them from the table itself.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from core import telemetry
from core.errors import K9Error, NewerFormat, Unavailable
from core.models import Build, Import, now, parse_timestamp
from core.queue import BuildJob, ImportJob
from core.repositories.leased_rows import OPEN_STATUSES
from core.resources import Resources
from worker import metrics
from worker.background import Background
from worker.building.runner import BuildRunner
from worker.importing.attempt import ImportRunner
from worker.importing.uploads import look_for_uploads
from worker.model_deletion import delete_model
from worker.slots import Slots
from worker.user_deletion import delete_user

_ROUNDS_UNCLAIMED = 3

_log = telemetry.logger(__name__)

W = TypeVar("W", Build, Import)
J = TypeVar("J", BuildJob, ImportJob)


async def reconcile(
    resources: Resources, runner: BuildRunner, importer: ImportRunner, background: Background
) -> int:
    """One round; returns the number of builds, imports and deletions that wait for a worker.

    Enqueuing a build twice is harmless: its job id includes the fence, and only one claim succeeds.
    So is starting a deletion twice, as only one worker gets its lease.

    Raises:
        NewerFormat: a later release has changed the tables: nothing was done.
    """
    every_s = resources.settings.building.reconcile_s
    await resources.models.check_tables()
    runner.resume()
    importer.resume()
    open_builds = await resources.builds.list_open()
    waiting = [each for each in open_builds if each.status == "queued" or _waiting_s(each) > 0]
    _measure(open_builds, waiting)
    await _start(waiting, resources.queue.enqueue, BuildJob.of, runner, every_s)
    imports = await reconcile_imports(resources, importer, background)
    metrics.RECONCILED.inc(len(waiting))
    users = await resources.user_deletions.list_marked()
    # Shuffled, so that the workers, each with room for some, do not all start with the same users.
    for user_id in random.sample(users, len(users)):
        start_user_deletion(resources, background, user_id)
    models = [model for model in await resources.models.list_models() if model.deleting_at]
    for model in models:
        name = f"delete-model/{model.model_version}"
        background.start(name, partial(delete_model, resources, model))
    metrics.DELETIONS_WAITING.labels("user").set(len(users))
    metrics.DELETIONS_WAITING.labels("model").set(len(models))
    metrics.RECONCILED_AT.set(time.time())
    return len(waiting) + imports + len(users) + len(models)


async def reconcile_imports(
    resources: Resources, importer: ImportRunner, background: Background
) -> int:
    """One round over the open imports; returns the number of those that wait."""
    try:
        open_imports = await resources.imports.list_open()
    except Unavailable as error:
        # An upgrade may reach the workers before the table: everything else goes on meanwhile.
        if importer.unreadable != str(error):
            _log.warning("imports cannot be read", reason=str(error))
        importer.unreadable = str(error)
        return 0
    importer.unreadable = ""
    for status in ("waiting", "queued", "running"):
        count = sum(each.status == status for each in open_imports)
        metrics.IMPORTS_OPEN.labels(status).set(count)
    uploads = [each for each in open_imports if each.status == "waiting"]
    if uploads:  # beside the rounds, which do not wait for S3
        background.start("uploads", partial(look_for_uploads, resources, uploads))
    others = [each for each in open_imports if each.status != "waiting"]
    waiting = [each for each in others if each.status == "queued" or _waiting_s(each) > 0]
    every_s = resources.settings.building.reconcile_s
    await _start(waiting, resources.queue.enqueue_import, ImportJob.of, importer, every_s)
    return len(waiting) + len(uploads)


async def _start(
    waiting: Sequence[W],
    enqueue: Callable[[str, int, str | None], Awaitable[bool]],
    job_of: Callable[[W], J],
    slots: Slots[J],
    every_s: float,
) -> None:
    """Enqueues what waits for a worker, or claims it."""
    enqueued = True
    for row in waiting:
        row_id = getattr(row, slots.id_name)
        try:
            enqueued = enqueued and await enqueue(row_id, row.fence, row.trace)
            # A worker that dies between job and claim leaves the job id in use for as long as the
            # longest job: what waits for long is claimed without one.
            unclaimed = not enqueued or _waiting_s(row) > _ROUNDS_UNCLAIMED * every_s
            if unclaimed and slots.free_slots:
                await slots.start(job_of(row))
        except Exception:  # noqa: BLE001 - one of them must not keep the others from being started
            _log.exception("open work skipped", **{slots.id_name: row_id})


async def reconcile_forever(
    resources: Resources, runner: BuildRunner, importer: ImportRunner, background: Background
) -> None:
    """Runs rounds, with jitter, until cancelled. A round that fails is logged."""
    every_s = resources.settings.building.reconcile_s
    metrics.RECONCILED_AT.set(time.time())  # the alert on its age must not fire at once
    while True:
        runner.slot_freed.clear()
        try:
            await reconcile(resources, runner, importer, background)
        except NewerFormat as error:
            reason = str(error)
            importer.pause(reason)
            if runner.pause(reason):
                _log.error("work refused", reason=reason)
        except K9Error as error:
            _log.warning("reconcile failed", error=str(error))
        except Exception:  # noqa: BLE001 - lost messages are replaced here: it must go on
            _log.exception("reconcile failed")
        pause_s = every_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        jobs = await resources.queue.depth()
        metrics.QUEUE_JOBS.set(math.nan if jobs is None else jobs)
        if jobs is not None:
            await asyncio.sleep(pause_s)
            continue
        with contextlib.suppress(TimeoutError):  # without Redis, look for work once a slot is free
            async with asyncio.timeout(pause_s):
                await runner.slot_freed.wait()


def start_user_deletion(resources: Resources, background: Background, user_id: str) -> None:
    """Deletes a user in the background, unless this process already does."""
    background.start(f"delete/{user_id}", partial(delete_user, resources, user_id))


def _measure(open_builds: Sequence[Build], waiting: Sequence[Build]) -> None:
    """Shows what the table has open: every worker shows the same."""
    for status in OPEN_STATUSES:
        count = sum(build.status == status for build in open_builds)
        metrics.BUILDS_OPEN.labels(status).set(count)
    metrics.OLDEST_OPEN_BUILD.set(_longest_s(_requested_s, open_builds))
    metrics.OLDEST_WAITING_BUILD.set(_longest_s(_waiting_s, waiting))


def _longest_s(measure: Callable[[Build], float], builds: Sequence[Build]) -> float:
    """The longest of these times, without the builds whose time cannot be read."""
    longest_s = 0.0
    for build in builds:
        with contextlib.suppress(ValueError):
            longest_s = max(longest_s, measure(build))
    return longest_s


def _requested_s(build: Build | Import) -> float:
    return (now() - parse_timestamp(build.requested_at)).total_seconds()


def _waiting_s(build: Build | Import) -> float:
    """For how many seconds nobody has worked on it; negative while its lease holds."""
    if build.status == "queued":
        return _requested_s(build)
    return time.time() - build.lease_until_ms / 1000
