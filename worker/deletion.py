"""Removes a user who asked for it: reports first, then what was answered, then the profile.

One worker does it, under a lease that each removal renews. Every step may be done again, so a
worker that dies leaves nothing that the next one cannot finish.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic

from core import telemetry
from core.errors import K9Error, LeaseLost, Unavailable
from core.repositories.deletions import Deletion
from core.repositories.transactions import Part
from core.resources import Resources

_LOOK_AGAIN_S = 1.0
_RELEASE_S = 2.0
"""For giving the lease back, where DynamoDB itself may be what is away."""

_log = telemetry.logger(__name__)


async def delete_user(resources: Resources, user_id: str) -> None:
    """Removes a marked user with all reports, unless another worker does.

    Does nothing for a user who is not marked.
    """
    deletion: Deletion | None = None
    try:
        deletion = await resources.deletions.claim(user_id)
        if deletion is None:
            return
        removed = await _remove(resources, deletion)
    except LeaseLost:
        _log.info("deletion lost to another worker")
    except Unavailable as error:
        _log.warning("deletion put off", reason=str(error))
        await _release(resources, deletion)
    except BaseException:
        await _release(resources, deletion)
        raise
    else:
        _log.info("user deleted", reports=removed)


async def _remove(resources: Resources, deletion: Deletion) -> int:
    """Removes all of a user; the number of reports.

    No report is written once the mark is there, for its transaction checks the mark; but the index
    shows one that was written just before a little later. So the index is asked until it has
    shown nothing after the time that it may take, counted from the claim, which saw the mark.

    Raises:
        LeaseLost: another worker has taken over.
    """
    settled = monotonic() + resources.settings.records.deletion_settle_s
    removed = 0
    while True:
        late = monotonic() >= settled
        count = await _remove_rows(
            resources, deletion, resources.reports.removals(deletion.user_id)
        )
        removed += count
        if late and not count:
            break
        await asyncio.sleep(_LOOK_AGAIN_S)
        await resources.deletions.renew(deletion)
    answers = resources.idempotency.removals(f"user/{deletion.user_id}")
    await _remove_rows(resources, deletion, answers)
    await resources.deletions.finish(deletion)
    return removed


async def _remove_rows(
    resources: Resources, deletion: Deletion, removals: AsyncIterator[list[Part]]
) -> int:
    """Removes what is found, some at a time; how many rows."""
    removed = 0
    async for parts in removals:
        await resources.deletions.remove(deletion, parts)
        removed += len(parts)
    return removed


async def _release(resources: Resources, deletion: Deletion | None) -> None:
    """Lets any worker go on at once; where that fails, the lease ends by itself."""
    if deletion is None:
        return
    with contextlib.suppress(K9Error, TimeoutError):
        async with asyncio.timeout(_RELEASE_S):
            await resources.deletions.release(deletion)
