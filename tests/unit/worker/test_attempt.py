"""A build's lease and its tries: what is written to the table, and when nothing is any more."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from core.errors import Unavailable
from core.models import Build, BuildParameters, Model, Progress
from core.settings import Building, Settings
from worker.building import attempt as pipeline
from worker.building.attempt import BuildRun

BUILD = Build(
    build_id="b" * 32,
    model_version="m",
    status="running",
    requested_at="2026-01-01T00:00:00.000000Z",
    parameters=BuildParameters(),
    fence=1,
    unreturned=1,
)


class Table:
    """The builds and models tables, which note what is written and may be away."""

    def __init__(self, building: Building, **of_build: Any) -> None:
        self.beats: list[Progress] = []
        self.waits_s: list[float] = []
        """Of the tries that were given back."""
        self.ended: list[str] = []
        self.away = False
        """Whether no heartbeat is answered."""
        self.hangs = False
        """Whether a heartbeat has no end."""
        self.begun = asyncio.Event()
        self.answers_model = asyncio.Event()
        resources: Any = SimpleNamespace(
            settings=Settings(building=building), builds=self, models=self
        )
        self.run = BuildRun(resources, msgspec.structs.replace(BUILD, **of_build))

    async def get_model(self, _model_version: str) -> Model:
        """Says nothing until it is told to; then that it is away."""
        self.begun.set()
        await self.answers_model.wait()
        raise Unavailable("DynamoDB was away")

    async def get_build(self, _build_id: str) -> Build:
        """The build as it began."""
        return BUILD

    async def beat(self, _build: Build, progress: Progress) -> None:
        """A heartbeat."""
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise Unavailable("DynamoDB is away")
        self.beats.append(progress)

    async def release(self, _build: Build, _error: str, *, wait_s: float, fault: bool) -> None:
        """The claim is given up."""
        assert fault
        self.waits_s.append(wait_s)

    async def end(self, _build: Build, status: str, _error: str) -> None:
        """The build ends."""
        self.ended.append(status)


def _left(directory: Path) -> list[Path]:
    return list(directory.rglob(f"{BUILD.build_id}.*"))


@pytest.mark.parametrize("how", ["away", "hangs"])
async def test_a_lease_that_cannot_be_renewed_is_left(tmp_path: Path, how: str) -> None:
    """The work stops and nothing is written: by then the build may be another worker's."""
    table = Table(Building(work_dir=tmp_path, lease_s=0.3, heartbeat_s=0.05))
    setattr(table, how, True)
    async with asyncio.timeout(10):
        await table.run.run()
    assert table.begun.is_set()
    assert (table.beats, table.waits_s, table.ended) == ([], [], [])
    assert not _left(tmp_path)


async def test_heartbeats_that_fail_for_a_while_lose_nothing(tmp_path: Path) -> None:
    """The lease holds longer than that: the next one is in time."""
    table = Table(Building(work_dir=tmp_path, lease_s=5.0, heartbeat_s=0.05))
    table.away = True
    running = asyncio.create_task(table.run.run())
    await asyncio.sleep(0.3)
    table.away = False
    async with asyncio.timeout(10):
        while not table.beats:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
    assert not running.done()
    table.answers_model.set()
    await running
    assert len(table.waits_s) == 1


async def test_a_new_stage_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches learns of it long before the next heartbeat is due."""
    monkeypatch.setattr(pipeline, "_PROGRESS_EVERY_S", 60.0)
    table = Table(Building(work_dir=tmp_path, lease_s=120.0, heartbeat_s=60.0))
    running = asyncio.create_task(table.run.run())
    await table.begun.wait()
    async with asyncio.timeout(10):
        for stage in ("index", "matrix"):
            table.run.report(stage, 1, 9)
            while Progress(stage, 1, 9) not in table.beats:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
    table.answers_model.set()
    await running


async def _waits_s(directory: Path, *, faults: int, tries: int = 25) -> list[float]:
    """For how long tries of a build wait that has had so many faults."""
    waits_s = []
    for _ in range(tries):
        table = Table(Building(work_dir=directory, build_attempts_max=100), faults=faults)
        table.answers_model.set()
        await table.run.run()
        waits_s += table.waits_s
    assert len(waits_s) == tries
    return waits_s


async def test_tries_wait_for_longer_each_time_and_for_each_its_own_time(tmp_path: Path) -> None:
    """What fails together does not come back together, nor for ever at once."""
    first, third = [await _waits_s(tmp_path, faults=faults) for faults in (0, 2)]
    last = await _waits_s(tmp_path, faults=50)
    assert 0 <= min(first) < max(first) <= 1
    assert 1 < max(third) <= 4 < max(last) <= 60
    for waits_s in (first, third, last):
        assert len(set(waits_s)) > len(waits_s) / 2


@pytest.mark.parametrize(("lost", "runs"), [(4, True), (5, False)])
async def test_as_many_workers_as_allowed_may_be_lost(
    tmp_path: Path,
    lost: int,
    runs: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """One try more than that is not begun: the build seems to take its workers with it."""
    building = Building(work_dir=tmp_path, build_losses_max=5)
    table = Table(building, unreturned=lost + 1)
    table.answers_model.set()
    await table.run.run()
    assert (table.begun.is_set(), table.ended) == (runs, [] if runs else ["failed"])
