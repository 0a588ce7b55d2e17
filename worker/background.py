"""What a worker does beside its builds: short or patient work that holds no slot."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from core import telemetry

_TASKS_MAX = 64

_log = telemetry.logger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """Named tasks, each name once at a time. What is not started here, a reconciler asks again."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def start(self, name: str, work: Work) -> bool:
        """Begins some work; False where it is under way, or there is too much of it."""
        if self._closed or name in self._tasks or len(self._tasks) >= _TASKS_MAX:
            return False
        self._tasks[name] = asyncio.create_task(self._run(name, work))
        return True

    def later(self, name: str, wait_s: float, work: Work) -> None:
        """Begins some work after a while, unless the worker ends before.

        Until then it takes no room from other work. Asked for again, it waits anew.
        """
        if self._closed:
            return
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            waiting.cancel()
        loop = asyncio.get_running_loop()
        self._waiting[name] = loop.call_later(wait_s, self._due, name, wait_s, work)

    async def drain(self) -> None:
        """Waits for what is under way, and not for what is for later."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """Cancels all of it; nothing begins any more."""
        self._closed = True
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _due(self, name: str, wait_s: float, work: Work) -> None:
        del self._waiting[name]
        if not self.start(name, work):
            self.later(name, wait_s, work)

    async def _run(self, name: str, work: Work) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - it is tried again, and must not end in silence
            _log.exception("background work broke", work=name)
        finally:
            del self._tasks[name]
