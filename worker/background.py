"""What a worker does beside its builds: short or patient work that holds no slot."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from core import telemetry

_TASKS_MAX = 64

_log = telemetry.logger(__name__)


class Background:
    """Named tasks, each name once at a time. What is not started here, a reconciler asks again."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Begins some work; False where it is under way, or there is too much of it."""
        if name in self._tasks or len(self._tasks) >= _TASKS_MAX:
            return False
        task = asyncio.create_task(self._run(name, work))
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return True

    def later(self, name: str, wait_s: float, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Begins some work after a while, unless the worker ends before."""

        async def wait() -> None:
            await asyncio.sleep(wait_s)
            await work()

        self.start(name, wait)

    async def drain(self, names: str) -> None:
        """Waits for the tasks whose names begin so."""
        waiting = [task for name, task in self._tasks.items() if name.startswith(names)]
        await asyncio.gather(*waiting, return_exceptions=True)

    async def close(self) -> None:
        """Cancels all of it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - it is tried again, and must not end in silence
            _log.exception("background work broke", work=name)
