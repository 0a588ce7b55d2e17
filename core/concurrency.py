"""Concurrent coroutines of which the first to fail cancels the others; iteration in a thread."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def gather(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """The results of the calls, in their order.

    Unlike `asyncio.gather`, it leaves none running when one fails, so that a client which they use
    can be closed. Unlike a failed `asyncio.TaskGroup` of Python 3.11, it does not leave the calling
    task marked as cancelled: in 3.11.2 every later `asyncio.timeout` there raises CancelledError.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_thread(iterator: Iterator[T]) -> AsyncIterator[T]:
    """The items of an iterator, each computed in a worker thread."""
    while (item := await asyncio.to_thread(next, iterator, None)) is not None:
        yield item


class BoundedTasks:
    """A task group that runs up to `limit` tasks at once, and raises the first error as it is."""

    def __init__(self, limit: int) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._group = asyncio.TaskGroup()

    async def start(
        self, function: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Starts a task, once fewer than `limit` are running."""

        async def run() -> None:
            try:
                await function(*args, **kwargs)
            finally:
                self._slots.release()

        await self._slots.acquire()
        self._group.create_task(run())

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
