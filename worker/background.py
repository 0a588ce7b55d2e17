"""What a worker does besides its builds: work that is short or can wait, and occupies no slot."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from core import telemetry

_TASKS_MAX = 64

_log = telemetry.logger(__name__)

Work = Callable[[], Coroutine[Any, Any, object]]


class Background:
    """Named tasks, at most one of each name. The reconciler retries what is refused here."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._scheduled: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def start(self, name: str, work: Work) -> bool:
        """Starts some work; False when it is already running, or there are too many tasks."""
        if self._closed or name in self._tasks or len(self._tasks) >= _TASKS_MAX:
            return False
        # In a context of its own: the trace and the log fields of a build that starts this are not
        # those of this work, which may go on for long after.
        self._tasks[name] = asyncio.create_task(self._run(name, work), context=Context())
        return True

    def later(self, name: str, wait_s: float, work: Work) -> None:
        """Starts some work after a while, unless the worker stops first.

        It does not count as a task until then. Scheduling it again restarts the wait.
        """
        if self._closed:
            return
        scheduled = self._scheduled.pop(name, None)
        if scheduled is not None:
            scheduled.cancel()
        loop = asyncio.get_running_loop()
        self._scheduled[name] = loop.call_later(wait_s, self._due, name, wait_s, work)

    async def drain(self) -> None:
        """Waits for the running tasks, not for scheduled ones."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """Cancels everything; nothing starts any more."""
        self._closed = True
        for scheduled in self._scheduled.values():
            scheduled.cancel()
        self._scheduled.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _due(self, name: str, wait_s: float, work: Work) -> None:
        del self._scheduled[name]
        if not self.start(name, work):
            self.later(name, wait_s, work)

    async def _run(self, name: str, work: Work) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - it is retried, and must not fail silently
            _log.exception("unexpected error in background work", work=name)
        finally:
            del self._tasks[name]
