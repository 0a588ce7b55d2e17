"""Deletes a user who requested it: reports first, then idempotency records, then the profile.

One worker does it, under a lease that each removal renews. Every step can be repeated, so that
another worker finishes what one that died left.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from time import monotonic

from core import telemetry
from core.errors import LeaseLost, Unavailable
from core.repositories.transactions import Part
from core.repositories.user_deletions import UserDeletion
from core.resources import Resources
from worker.leases import released

_POLL_S = 1.0

_log = telemetry.logger(__name__)


async def delete_user(resources: Resources, user_id: str) -> None:
    """Deletes a marked user and all their reports, unless another worker does.

    Does nothing for a user who is not marked.
    """
    try:
        deletion = await resources.user_deletions.claim(user_id)
        if deletion is None:
            return
        async with released(partial(resources.user_deletions.release, deletion)):
            removed = await _remove(resources, deletion)
    except LeaseLost:
        _log.info("deletion lost to another worker")
    except Unavailable as error:
        _log.warning("deletion postponed", reason=str(error))
    else:
        _log.info("user deleted", reports=removed)


async def _remove(resources: Resources, deletion: UserDeletion) -> int:
    """Removes everything of a user; returns the number of reports.

    No report is written after the mark, because its transaction checks the mark; but the index may
    lag and show one that was written just before. So the index is polled until it shows nothing
    after the longest lag, counted from the claim, which saw the mark.

    Raises:
        LeaseLost: another worker has taken over.
    """
    settled_at = monotonic() + resources.settings.records.deletion_settle_s
    removed = 0
    while True:
        settled = monotonic() >= settled_at
        count = await _remove_rows(
            resources, deletion, resources.reports.removals(deletion.user_id)
        )
        removed += count
        if settled and not count:
            break
        await asyncio.sleep(_POLL_S)
        await resources.user_deletions.renew(deletion)
    records = resources.idempotency.removals(f"user/{deletion.user_id}")
    await _remove_rows(resources, deletion, records)
    await resources.user_deletions.finish(deletion)
    return removed


async def _remove_rows(
    resources: Resources, deletion: UserDeletion, removals: AsyncIterator[list[Part]]
) -> int:
    removed = 0
    async for parts in removals:
        await resources.user_deletions.remove(deletion, parts)
        removed += len(parts)
    return removed
