"""Long work in threads, by turns: one step of one caller, then one of the next.

The work is a generator that yields between its steps. After each step the event loop has its turn,
and the thread goes to whoever waits, callers in rotation, so that a caller with a hundred searches
delays another by a step and not by a hundred searches. One caller alone is never held up.
"""

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, TypeVar

from api import metrics
from core.errors import Overloaded

T = TypeVar("T")
Steps = Generator[int, None, T]
"""Work in steps; yields how many bytes of memory the step has taken for its result."""

_NICE: Final = 10


class FairExecutor:
    """Runs long work in threads, callers in rotation."""

    def __init__(self, name: str, threads: Executor, width: int, wait_s: float) -> None:
        """Takes the threads, which must have no other user.

        Args:
            name: For metrics and errors.
            threads: At least `width` of them.
            width: How many steps may run at once.
            wait_s: How long work may wait for its first turn.
        """
        self._name = name
        self._threads = threads
        self._free = width
        self._wait_s = wait_s
        self._too_late = metrics.SHED.labels(name, "deadline")
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By caller, the next one first."""

    async def run(
        self, caller: str, steps: Steps[T], taken: Callable[[int], None] | None = None
    ) -> T:
        """The result of the work.

        Args:
            caller: Whose turn it uses.
            steps: The work; it is closed where it does not come to its end.
            taken: Called on the event loop with what each step yielded; may raise.

        Raises:
            Overloaded: its first turn did not come in time.
        """
        loop = asyncio.get_running_loop()
        has_turn = False
        try:
            if self._free:
                self._free -= 1
            else:
                await self._wait(self._queued(caller, first=True), self._wait_s)
            has_turn = True
            while True:
                over, value = await loop.run_in_executor(self._threads, _step, steps)
                if over:
                    result: T = value
                    return result
                if taken is not None:
                    taken(value)
                if self._waiting:
                    turn = self._queued(caller, first=False)
                    has_turn = False
                    self._pass_on()
                    await self._wait(turn, None)
                    has_turn = True
        finally:
            if has_turn:
                self._pass_on()
            with suppress(ValueError):  # a cancelled request leaves its last step to end by itself
                steps.close()

    def _queued(self, caller: str, *, first: bool) -> "asyncio.Future[None]":
        """A turn to come. What has begun goes before what the same caller has not begun."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.setdefault(caller, deque()).append(turn)
        else:  # the caller has just had a turn: it is last now
            queue = self._waiting.pop(caller, deque())
            queue.appendleft(turn)
            self._waiting[caller] = queue
        return turn

    async def _wait(self, turn: "asyncio.Future[None]", wait_s: float | None) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it came at the same moment
            turn.cancel()
            if not isinstance(error, TimeoutError):
                raise
            self._too_late.inc()
            raise Overloaded(f"too many {self._name} are in flight; try again shortly") from None

    def _pass_on(self) -> None:
        """Gives the turn to the caller whose last one is longest ago."""
        while self._waiting:
            caller = next(iter(self._waiting))
            queue = self._waiting.pop(caller)
            while queue and queue[0].done():
                queue.popleft()
            if queue:
                turn = queue.popleft()
                if queue:
                    self._waiting[caller] = queue
                turn.set_result(None)
                return
        self._free += 1


def lower_priority() -> None:
    """Lets the event loop's thread run first where both want the processor. For this thread alone.

    Linux gives each thread a priority of its own; elsewhere it is the whole process's.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def one_step(work: Callable[..., T], *arguments: Any) -> Steps[T]:
    """Work that has no steps."""
    yield from ()  # makes it a generator
    return work(*arguments)


def finished(steps: Steps[T]) -> T:
    """The result of all steps at once, here."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def _step(steps: Steps[Any]) -> tuple[bool, Any]:
    """Whether that was the last step, and what it gave."""
    try:
        return False, next(steps)
    except StopIteration as end:
        return True, end.value
