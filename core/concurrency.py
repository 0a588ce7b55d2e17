"""Concurrent coroutines of which the first to fail cancels the others; iteration in a thread."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

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


async def for_each(
    items: AsyncGenerator[T, None], function: Callable[[T], Awaitable[object]], limit: int
) -> None:
    """Calls the function with every item, up to `limit` at once. The first error ends all of it."""
    reading = asyncio.Lock()

    async def work() -> None:
        while True:
            async with reading:
                item = await anext(items, None)
            if item is None:
                return
            await function(item)

    async with aclosing(items):
        await gather(*(work() for _ in range(limit)))
