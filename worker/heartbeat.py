"""Renews the lease of an attempt while its work runs; losing the lease cancels the work."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from core.errors import LeaseLost, Unavailable

_PROGRESS_EVERY_S: Final = 1.0


class Heartbeat:
    """The heartbeat of one attempt."""

    def __init__(
        self, beat: Callable[[], Awaitable[None]], *, lease_s: float, heartbeat_s: float
    ) -> None:
        """`beat` renews the lease, writes the progress, and raises LeaseLost where it is lost."""
        self._renew = beat
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._reported = asyncio.Event()
        self._stage_changed = asyncio.Event()

    def report(self, *, new_stage: bool) -> None:
        """Has the progress written soon; that of a new stage at once."""
        if new_stage:
            self._stage_changed.set()
        self._reported.set()

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs the work while the lease holds.

        Raises:
            LeaseLost: another worker has it, or it could not be renewed in time.
        """
        working = asyncio.create_task(work)
        beating = asyncio.create_task(self._beat())
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            (working if working.done() else beating).result()
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    async def _beat(self) -> None:
        """Renews the lease until cancelled."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._lease_s
        while True:
            began = loop.time()
            self._reported.clear()
            self._stage_changed.clear()
            try:
                # The client retries patiently: a call that hangs must leave time for another one,
                # and a call that is slow, behind the pages of a pull, must have time to finish.
                async with asyncio.timeout_at(min(until, began + self._lease_s / 2)):
                    await self._renew()
                until = began + self._lease_s
            except (Unavailable, TimeoutError):
                if loop.time() >= until:
                    raise LeaseLost("the lease could not be renewed in time") from None
                self._reported.set()
            # The next one is due at once for a new stage, and soon for progress.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(began + self._heartbeat_s):
                    await self._reported.wait()
                    async with asyncio.timeout_at(began + _PROGRESS_EVERY_S):
                        await self._stage_changed.wait()
