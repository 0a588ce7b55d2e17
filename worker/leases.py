"""Releases the lease of a deletion when its work ends, however it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from core.errors import K9Error

_TIMEOUT_S = 2.0
"""DynamoDB itself may be away; then the lease expires."""


@asynccontextmanager
async def released(release: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Calls `release` at the end of the block, so that any worker may continue at once."""
    try:
        yield
    finally:
        with suppress(K9Error, TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
                await release()
