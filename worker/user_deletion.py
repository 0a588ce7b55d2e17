"""Deletes a user who requested it: reports first, then idempotency records, then the profile.

One worker does it, under a lease that each removal renews. Every step can be repeated, so that
another worker finishes what one that died left.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic

from core import telemetry
from core.errors import K9Error, LeaseLost, Unavailable
from core.repositories.transactions import Part
from core.repositories.user_deletions import UserDeletion
from core.resources import Resources

_POLL_S = 1.0
_RELEASE_TIMEOUT_S = 2.0
"""For releasing the lease, when DynamoDB itself may be away."""

_log = telemetry.logger(__name__)


async def delete_user(resources: Resources, user_id: str) -> None:
    """Deletes a marked user and all their reports, unless another worker does.

    Does nothing for a user who is not marked.
    """
    deletion: UserDeletion | None = None
    try:
        deletion = await resources.user_deletions.claim(user_id)
        if deletion is None:
            return
        removed = await _remove(resources, deletion)
    except LeaseLost:
        _log.info("deletion lost to another worker")
    except Unavailable as error:
        _log.warning("deletion postponed", reason=str(error))
        await _release(resources, deletion)
    except BaseException:
        await _release(resources, deletion)
        raise
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
    """Removes rows in transactions; returns the number of rows."""
    removed = 0
    async for parts in removals:
        await resources.user_deletions.remove(deletion, parts)
        removed += len(parts)
    return removed


async def _release(resources: Resources, deletion: UserDeletion | None) -> None:
    """Lets any worker continue at once; if that fails, the lease expires."""
    if deletion is None:
        return
    with contextlib.suppress(K9Error, TimeoutError):
        async with asyncio.timeout(_RELEASE_TIMEOUT_S):
            await resources.user_deletions.release(deletion)
