"""When a model version is tidied up: after a publish, and until nothing waits any more."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import Unavailable
from core.repositories.tombstones import Tombstone
from core.settings import Building, Settings
from core.usecases.retention import Kept
from worker.background import Background
from worker.building import garbage_collector as tidying
from worker.building.garbage_collector import Tidying

GRACE_S = 0.05


class Rig:
    """Tidying over versions of which some wait for the end of their grace time."""

    def __init__(self, waiting: int = 0) -> None:
        self.waiting = waiting
        """Rounds from now that leave something."""
        self.rounds = 0
        self.removed: list[Tombstone] = []
        self.errors: list[Exception] = []
        self.free = asyncio.Event()
        """A round ends once it is set."""
        self.free.set()
        self.background = Background()
        resources: Any = SimpleNamespace(
            settings=Settings(building=Building(version_grace_s=GRACE_S)),
            retention=SimpleNamespace(apply=self._apply),
            tombstones=SimpleNamespace(remove=self._remove),
        )
        self.tidying = Tidying(resources, self.background)

    async def until(self, rounds: int) -> None:
        """Waits for that many rounds in all, and then whether more would come."""
        async with asyncio.timeout(20):
            while self.rounds < rounds:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        await asyncio.sleep(3 * GRACE_S)
        await self.background.close()
        assert self.rounds == rounds

    async def _apply(self, _model_version: str) -> Kept:
        self.rounds += 1
        await self.free.wait()
        if self.errors:
            raise self.errors.pop()
        self.waiting -= 1
        return Kept("2025", self.waiting >= 0, 0)

    async def _remove(self, _model_version: str, tombstones: Iterable[Tombstone]) -> int:
        self.removed += tombstones
        return 0


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause is longer than the grace time."""
    monkeypatch.setattr(tidying, "_PAUSE_MIN_S", GRACE_S)


async def test_rounds_go_on_while_something_waits() -> None:
    """Each that leaves something is followed by another; the one that leaves nothing by none."""
    rig = Rig(waiting=3)
    rig.tidying.ask("m")
    await rig.until(4)


async def test_a_round_that_failed_is_made_again() -> None:
    """Removing waits for S3 to be back, not for the next build."""
    rig = Rig()
    rig.errors = [Unavailable("S3 is away")]
    rig.tidying.ask("m")
    await rig.until(2)


async def test_what_is_published_during_a_round_has_one_of_its_own() -> None:
    """With its tombstones; the one under way may have looked before it was there."""
    rig = Rig()
    rig.free.clear()
    old, late = Tombstone("a", "2024"), Tombstone("b", "2024")
    rig.tidying.ask("m", (old,))
    await asyncio.sleep(0)
    rig.tidying.ask("m", (late,))
    rig.free.set()
    await rig.background.drain()
    assert rig.rounds == 2
    assert rig.removed == [old, late]
    await rig.background.close()


async def test_what_is_published_while_others_wait_is_tidied_at_once() -> None:
    """And the end of its grace time is waited for as well."""
    rig = Rig(waiting=2)
    rig.tidying.ask("m")
    await rig.background.drain()
    rig.tidying.ask("m")
    await rig.background.drain()
    assert rig.rounds == 2
    await rig.until(3)


async def test_tombstones_that_a_kept_version_needs_stay() -> None:
    """Those of after the oldest kept version's rows were read."""
    rig = Rig()
    gone, needed = Tombstone("a", "2024"), Tombstone("b", "2026")
    rig.tidying.ask("m", (gone, needed))
    await rig.background.drain()
    assert rig.removed == [gone]
    await rig.background.close()
