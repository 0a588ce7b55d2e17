"""Imports that wait for their object to be uploaded, and uploads that are no longer needed."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from core import names, telemetry
from core.errors import K9Error, LeaseLost, NotFound
from core.limits import UPLOAD_S, UPLOADS_KEPT_S
from core.models import Import, now, parse_timestamp
from core.repositories.leased_rows import age_s
from core.resources import Resources
from worker import metrics
from worker.background import Background

FIRST_REMOVAL_S: Final = 60.0
"""After the start of a worker, which may not run for an hour."""
_REMOVAL_EVERY_S: Final = 3600.0

_log = telemetry.logger(__name__)


async def look_for_uploads(resources: Resources, waiting: Sequence[Import]) -> None:
    """Looks for the object of each import that waits for one; one that fails stops no other."""
    for each in waiting:
        try:
            await look_for_upload(resources, each)
        except K9Error as error:
            _log.warning("upload not looked for", import_id=each.import_id, reason=str(error))


async def look_for_upload(resources: Resources, waiting: Import) -> None:
    """Queues an import whose object has arrived; fails one whose time is over.

    Raises:
        Unavailable: S3 or DynamoDB was away; the next round looks again.
    """
    try:
        head = await resources.objects.head(waiting.parameters.key)
    except NotFound:
        head = None
    try:
        if head is not None and head.etag is not None:
            queued = await resources.imports.found(waiting, head.etag, head.size_bytes)
            await resources.queue.enqueue_import(queued.import_id, queued.fence, queued.trace)
            _log.info("upload found", import_id=waiting.import_id, bytes=head.size_bytes)
            return
        grace_s = resources.settings.imports.import_upload_grace_s
        until = parse_timestamp(waiting.requested_at) + timedelta(seconds=UPLOAD_S + grace_s)
        if now() < until:
            return
        reason = f"nothing was uploaded within {UPLOAD_S // 60} minutes"
        await resources.imports.end(waiting, "failed", reason)
    except LeaseLost:
        return  # another worker was faster, or it was cancelled
    metrics.IMPORTS_ENDED.labels("failed").inc()
    _log.info("import failed", import_id=waiting.import_id, reason=reason)


async def remove_old_uploads(resources: Resources) -> int:
    """Removes uploads after their time; returns their number. What else is there stays.

    The lifecycle rule of the template does so too: this is for buckets without one, such as that of
    the embedded stack.

    Raises:
        Unavailable: S3 was away.
    """
    prefix = names.uploads_prefix(resources.settings.environment)
    keys = await resources.objects.list_keys(prefix)
    old = [key for key in keys if _is_old(key.removeprefix(prefix))]
    await resources.objects.delete(old)
    if old:
        _log.info("old uploads removed", uploads=len(old))
    return len(old)


async def remove_old_uploads_hourly(resources: Resources, background: Background) -> None:
    """Removes them now, and schedules the next time."""
    try:
        await remove_old_uploads(resources)
    except K9Error as error:
        _log.warning("old uploads not removed", reason=str(error))
    finally:
        schedule_removal(resources, background, _REMOVAL_EVERY_S)


def schedule_removal(resources: Resources, background: Background, wait_s: float) -> None:
    """Has old uploads removed after a while, and hourly from then on."""
    work = partial(remove_old_uploads_hourly, resources, background)
    background.later("old uploads", wait_s, work)


def _is_old(import_id: str) -> bool:
    try:
        return age_s(import_id) > UPLOADS_KEPT_S
    except ValueError:
        return False
