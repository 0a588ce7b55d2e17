"""Tasks that run as long as the process."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from core import telemetry

_RESTART_S: Final = 5.0

_log = telemetry.logger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]


async def supervised(work: Work) -> None:
    """Runs work that never ends; after an error, which is a bug, it is logged and begins again."""
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - a bug must not end the task for good
            _log.exception("background task failed", task=work.__qualname__)
        await asyncio.sleep(_RESTART_S)


@asynccontextmanager
async def running(*works: Work) -> AsyncIterator[None]:
    """Runs each of them supervised until the end of the block."""
    tasks = [asyncio.create_task(supervised(work)) for work in works]
    try:
        yield
    finally:
        await cancelled(*tasks)


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels tasks, and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
