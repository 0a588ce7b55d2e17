"""When garbage is collected: after a publish, and until nothing waits any more."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest
from typing_extensions import override

from core.errors import Unavailable
from core.repositories.embeddings import EmbeddingRepository
from core.resources import Resources, open_resources
from core.settings import Aws, Building, Settings
from worker.background import Background
from worker.building import garbage_collector
from worker.building.garbage_collector import GarbageCollector
from worker.retention import RetentionResult, apply_retention

GRACE_S = 0.05


class Versions:
    """Versions of which some wait for the end of their grace time."""

    def __init__(self) -> None:
        self.waiting = 0
        """Rounds from now that leave something."""
        self.rounds = 0
        self.ended: asyncio.Queue[int] = asyncio.Queue()
        """Gets the number of each round that has ended."""
        self.errors: list[Exception] = []
        self.free = asyncio.Event()
        """A round ends once it is set."""
        self.free.set()

    async def apply(self, resources: Resources, model_version: str) -> RetentionResult:
        """One round."""
        assert isinstance(resources.embeddings, Embeddings)
        assert model_version == "m"
        self.rounds += 1
        await self.free.wait()
        self.ended.put_nowait(self.rounds)
        if self.errors:
            raise self.errors.pop()
        self.waiting -= 1
        return RetentionResult("2025", self.waiting >= 0, 0)


class Embeddings(EmbeddingRepository):
    """Records which tombstones are removed."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.dynamo, resources.settings)
        self.removed: dict[str, str] = {}

    @override
    async def remove_tombstones(self, model_version: str, tombstones: Mapping[str, str]) -> int:
        """Removes them all."""
        assert model_version == "m"
        self.removed |= tombstones
        return len(tombstones)


class Rig:
    """A garbage collector, and what it collects."""

    def __init__(self, opened: Resources, patch: pytest.MonkeyPatch) -> None:
        self.background = Background()
        self.versions = Versions()
        self.embeddings = Embeddings(opened)
        apply = apply_retention
        apply = self.versions.apply  # of the same type, as mypy sees to
        patch.setattr(garbage_collector, "apply_retention", apply)
        resources = replace(opened, embeddings=self.embeddings)
        self.collector = GarbageCollector(resources, self.background)

    async def until(self, rounds: int) -> None:
        """Waits for that many rounds in all, and then whether more would come."""
        async with asyncio.timeout(20):
            while await self.versions.ended.get() < rounds:
                continue
        await asyncio.sleep(3 * GRACE_S)
        await self.background.close()
        assert self.versions.rounds == rounds


@pytest.fixture(scope="module")
async def opened() -> AsyncIterator[Resources]:
    """Resources that connect to nothing."""
    settings = Settings(
        aws=Aws(endpoint_url="http://127.0.0.1:1"), building=Building(version_grace_s=GRACE_S)
    )
    async with open_resources(settings) as resources:
        yield resources


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause is longer than the grace time."""
    monkeypatch.setattr(garbage_collector, "_PAUSE_MIN_S", GRACE_S)


@pytest.fixture
def rig(opened: Resources, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A garbage collector, at which nothing waits."""
    return Rig(opened, monkeypatch)


async def test_rounds_go_on_while_something_waits(rig: Rig) -> None:
    """Each that leaves something is followed by another; the one that leaves nothing by none."""
    rig.versions.waiting = 3
    rig.collector.request("m", {})
    await rig.until(4)


async def test_a_round_that_failed_is_made_again(rig: Rig) -> None:
    """Removing waits for S3 to be back, not for the next build."""
    rig.versions.errors = [Unavailable("S3 is away")]
    rig.collector.request("m", {})
    await rig.until(2)


async def test_what_is_published_during_a_round_has_one_of_its_own(rig: Rig) -> None:
    """With its tombstones; the one under way may have looked before it was there."""
    rig.versions.free.clear()
    rig.collector.request("m", {"a": "2024"})
    await asyncio.sleep(0)
    rig.collector.request("m", {"b": "2024"})
    rig.versions.free.set()
    await rig.background.drain()
    assert rig.versions.rounds == 2
    assert rig.embeddings.removed == {"a": "2024", "b": "2024"}
    await rig.background.close()


async def test_what_is_published_while_others_wait_is_collected_at_once(rig: Rig) -> None:
    """And the end of its grace time is waited for as well."""
    rig.versions.waiting = 2
    rig.collector.request("m", {})
    await rig.background.drain()
    rig.collector.request("m", {})
    await rig.background.drain()
    assert rig.versions.rounds == 2
    await rig.until(3)


async def test_tombstones_that_a_kept_version_needs_stay(rig: Rig) -> None:
    """Those of after the oldest kept version's rows were read."""
    rig.collector.request("m", {"a": "2024", "b": "2026"})
    await rig.background.drain()
    assert rig.embeddings.removed == {"a": "2024"}
    await rig.background.close()
