"""Concurrent work of the commands: bounded, and ended by its first error."""

import asyncio

import pytest

from core.concurrency import BoundedTasks, gather, in_thread
from core.errors import Unavailable


async def test_no_more_tasks_run_than_the_limit() -> None:
    """The third waits until one of the first two has ended; all have ended after the block."""
    running = most = ended = 0
    release = asyncio.Event()

    async def task() -> None:
        nonlocal running, most, ended
        running += 1
        most = max(most, running)
        if running == 2:
            release.set()
        await release.wait()
        running -= 1
        ended += 1

    async with BoundedTasks(2) as tasks:
        for _ in range(6):
            await tasks.start(task)
    assert (most, ended) == (2, 6)


async def test_the_first_error_is_raised_as_it_is_and_cancels_the_others() -> None:
    """Callers catch an error of the tables, not a group of errors."""
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails() -> None:
        raise Unavailable("gone")

    async def run() -> None:
        async with BoundedTasks(2) as tasks:
            await tasks.start(waits)
            await tasks.start(fails)
            await tasks.start(waits)  # not before one has ended

    with pytest.raises(Unavailable, match="gone"):
        await run()
    assert cancelled.is_set()


async def test_an_error_of_the_block_is_raised_as_it_is() -> None:
    """Such as that of a file which cannot be read any further."""
    with pytest.raises(ValueError, match="damaged"):
        async with BoundedTasks(1):
            raise ValueError("damaged")


async def test_gathered_calls_end_with_the_first_error() -> None:
    """None goes on with a client that is closed."""
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fails() -> None:
        raise Unavailable("gone")

    with pytest.raises(Unavailable):
        await gather(waits(), fails())
    assert cancelled.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_iterator_is_read_to_its_end_or_its_error() -> None:
    """The items before an error come first."""
    assert [item async for item in in_thread(iter(["a", "b"]))] == ["a", "b"]
    seen: list[int] = []

    async def read() -> None:
        async for item in in_thread(6 // (2 - n) for n in range(5)):
            seen.append(item)  # noqa: PERF401 - the error comes after them

    with pytest.raises(ZeroDivisionError):
        await read()
    assert seen == [3, 6]
