"""Removes a user who asked for it: reports first, then what was answered, then the profile.

Every step may be done again, so a worker that dies leaves nothing that the next one cannot finish.
"""

import asyncio
from datetime import timedelta

from core import telemetry
from core.errors import NotFound, Unavailable
from core.models import now, parse_timestamp
from core.resources import Resources

_LOOK_AGAIN_S = 1.0

_log = telemetry.logger(__name__)


async def delete_user(resources: Resources, user_id: str) -> None:
    """Removes a marked user with all reports; does nothing for a user who is not marked.

    No report is written once the mark is there, for its transaction checks the mark; but the index
    shows one that was written just before a little later. So the index is asked until it has
    shown nothing after the time that it may take.
    """
    try:
        user = await resources.users.get_user(user_id)
    except NotFound:
        await resources.users.remove_user(user_id)  # the note of it may be left
        return
    if user.deleting_at is None:
        return
    settle = timedelta(seconds=resources.settings.records.deletion_settle_s)
    settled = parse_timestamp(user.deleting_at) + settle
    removed = 0
    try:
        while True:
            late = now() >= settled
            count = await resources.reports.remove_reports(user_id)
            removed += count
            if late and not count:
                break
            await asyncio.sleep(_LOOK_AGAIN_S)
        await resources.idempotency.forget(f"user/{user_id}")
        await resources.users.remove_user(user_id)
    except Unavailable as error:
        _log.warning("deletion put off", reason=str(error), reports=removed)
        return
    _log.info("user deleted", reports=removed)
