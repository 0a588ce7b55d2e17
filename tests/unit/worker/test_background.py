"""Work beside builds: what is under way, what is for later, and what there is no room for."""

import asyncio

from worker.background import Background


class Work:
    """Work that notes each of its beginnings, and takes until it is told to end."""

    def __init__(self) -> None:
        self.begun = 0
        self.end = asyncio.Event()

    async def __call__(self) -> None:
        """Works."""
        self.begun += 1
        await self.end.wait()


async def _nothing() -> None:
    """Ends at once."""


async def test_what_is_under_way_is_not_begun_twice() -> None:
    """The same name is free again once its work has ended, however it did."""
    background, work = Background(), Work()
    assert background.start("a", work)
    assert not background.start("a", work)
    work.end.set()
    await background.drain()
    assert background.start("a", work)
    await background.drain()
    assert work.begun == 2


async def test_what_is_for_later_takes_no_room() -> None:
    """However many wait for their time, other work begins; what is under way is bounded."""
    background, work = Background(), Work()
    for number in range(100):
        background.later(f"tidy/{number}", 600, work)
    begun = [background.start(f"delete/{number}", work) for number in range(100)]
    assert 10 < sum(begun) < 100
    await background.close()


async def test_what_is_for_later_comes_when_there_is_room() -> None:
    """At its time there was none: it waits again, and is not forgotten."""
    background, busy, work = Background(), Work(), Work()
    for number in range(100):
        background.start(f"{number}", busy)
    background.later("a", 0.01, work)
    await asyncio.sleep(0.05)
    assert work.begun == 0
    busy.end.set()
    async with asyncio.timeout(20):
        while not work.begun:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
    await background.close()


async def test_what_is_asked_for_again_waits_anew() -> None:
    """Once, and from the last time on."""
    background, work = Background(), Work()
    background.later("a", 0.05, work)
    background.later("a", 600, work)
    background.later("b", 600, work)
    background.later("b", 0.05, work)
    await asyncio.sleep(0.2)
    await background.close()
    assert work.begun == 1


async def test_nothing_begins_after_the_end() -> None:
    """What is under way is cancelled, what waits is forgotten, and nothing further is taken."""
    background, work = Background(), Work()
    background.start("a", work)
    background.later("b", 0.01, work)
    await asyncio.sleep(0)
    await background.close()
    assert not background.start("c", _nothing)
    background.later("d", 0, work)
    await asyncio.sleep(0.05)
    assert work.begun == 1
