"""Concurrent work of the commands: bounded, and ended by its first error."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from core.concurrency import for_each, gather, in_thread
from core.errors import Unavailable


async def numbers(count: int, error: Exception | None = None) -> AsyncGenerator[int, None]:
    """The first numbers, and then the error."""
    for number in range(count):
        yield number
    if error is not None:
        raise error


async def test_no_more_calls_run_than_the_limit() -> None:
    """The third waits until one of the first two has ended; all have ended in the end."""
    running = most = 0
    ended: list[int] = []
    release = asyncio.Event()

    async def call(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            release.set()
        await release.wait()
        running -= 1
        ended.append(number)

    await for_each(numbers(6), call, 2)
    assert (most, sorted(ended)) == (2, [0, 1, 2, 3, 4, 5])


async def test_the_first_error_is_raised_as_it_is_and_cancels_the_others() -> None:
    """Callers catch an error of the tables, not a group of errors."""
    begun: list[int] = []
    cancelled = asyncio.Event()

    async def call(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise Unavailable("gone")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(Unavailable, match="gone"):
        await for_each(numbers(6), call, 2)
    assert cancelled.is_set()
    assert begun == [0, 1]


async def test_an_error_of_the_items_is_raised_as_it_is() -> None:
    """Such as that of a file which cannot be read any further."""
    seen: list[int] = []

    async def call(number: int) -> None:
        seen.append(number)

    with pytest.raises(ValueError, match="damaged"):
        await for_each(numbers(2, ValueError("damaged")), call, 1)
    assert seen == [0, 1]


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
