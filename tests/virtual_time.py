"""An event loop whose clock a test need not wait for: it jumps to the next timer.

The clock stands still while a thread works, and while anything is ready to run. So sleeps, timeouts
and intervals take no time, and happen in the order in which they would. What waits for a socket or
for a subprocess waits in real time, so a test in virtual time has none.
"""

import asyncio
import inspect
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar, TypeVarTuple, Unpack

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH: Final = datetime(2026, 6, 1, tzinfo=UTC)
"""The wall clock's time when a loop begins."""


class _Selector(selectors.DefaultSelector):
    """Moves the clock on in place of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.time_s = 0.0
        self.threads_at_work = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or (timeout > 0 and self.threads_at_work):
            return super().select(None)  # until a thread, or a signal, wakes the loop
        ready = super().select(0)
        if not ready and timeout > 0:
            self.time_s += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Begins at 0."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds, as far as the timers have moved it."""
        return self._virtual.time_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        """Runs it on a thread, while the clock stands still."""
        future = super().run_in_executor(executor, func, *args)
        self._virtual.threads_at_work += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _future: "asyncio.Future[Any]") -> None:
        self._virtual.threads_at_work -= 1


def virtual_now() -> datetime:
    """The wall clock of the running loop, in UTC."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an async test in a virtual time loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_in_virtual_time(lambda: test(*args, **kwargs))

    del run.__wrapped__  # pytest would take it for async
    vars(run)["__signature__"] = inspect.signature(test)
    return run


def run_in_virtual_time(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of work in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work())
