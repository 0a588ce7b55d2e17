"""A build's lease and its attempts: what is written to the table, and when nothing is any more."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from core.errors import TableMissing, Unavailable
from core.models import Build, BuildParameters, Model, Progress
from core.repositories.builds import BuildRepository
from core.repositories.models import ModelRepository
from core.resources import Resources, open_resources
from core.settings import Aws, Building, Settings
from worker import heartbeat
from worker.building.attempt import BuildAttempt

BUILD = Build(
    build_id="b" * 32,
    model_version="m",
    status="running",
    requested_at="2026-01-01T00:00:00.000000Z",
    parameters=BuildParameters(),
    fence=1,
    unreturned=1,
)


class Builds(BuildRepository):
    """The builds table: records what is written, and can be unavailable."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.dynamo, resources.settings)
        self.beats: list[Progress] = []
        self.beaten: asyncio.Queue[Progress] = asyncio.Queue()
        """Gets each heartbeat."""
        self.waits_s: list[float] = []
        """Of the attempts that were released."""
        self.errors: list[str] = []
        """What their rows say."""
        self.ended: list[str] = []
        self.refused = asyncio.Event()
        """Set once a heartbeat has failed."""
        self.away = False
        """Whether heartbeats fail."""
        self.hangs = False
        """Whether heartbeats never return."""

    async def get_build(self, build_id: str) -> Build:
        """The build as it began."""
        assert build_id == BUILD.build_id
        return BUILD

    async def beat(self, build: Build, progress: Progress) -> Build:
        """A heartbeat."""
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            self.refused.set()
            raise Unavailable("DynamoDB is away")
        self.beats.append(progress)
        self.beaten.put_nowait(progress)
        return build

    async def release(
        self, build: Build, error: str, *, wait_s: float, fault: bool = True
    ) -> Build:
        """The claim is released."""
        assert fault
        self.errors.append(error)
        self.waits_s.append(wait_s)
        return build

    async def end(self, build: Build, status: str, error: str) -> None:
        """The build ends."""
        assert build.build_id == BUILD.build_id
        self.errors.append(error)
        self.ended.append(status)


class Models(ModelRepository):
    """A models table that says nothing until it may answer; then that it is missing."""

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources.dynamo, resources.settings)
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def get_model(self, model_version: str) -> Model:
        """Stands for the work of a build."""
        assert model_version == BUILD.model_version
        self.asked.set()
        await self.may_answer.wait()
        raise TableMissing("DynamoDB has no table k9-x", public="a table is missing")


@pytest.fixture(scope="module")
async def opened() -> AsyncIterator[Resources]:
    """Resources that connect to nothing."""
    settings = Settings(aws=Aws(endpoint_url="http://127.0.0.1:1"))
    async with open_resources(settings) as resources:
        yield resources


class Rig:
    """An attempt at a build, and the tables it writes to."""

    def __init__(self, opened: Resources, building: Building, build: Build = BUILD) -> None:
        resources = replace(opened, settings=Settings(building=building))
        self.builds = Builds(resources)
        self.models = Models(resources)
        self.attempt = BuildAttempt(
            replace(resources, builds=self.builds, models=self.models), build
        )


def _left(directory: Path) -> list[Path]:
    return list(directory.rglob(f"{BUILD.build_id}.*"))


@pytest.mark.parametrize("how", ["away", "hangs"])
async def test_a_lease_that_cannot_be_renewed_is_left(
    opened: Resources, tmp_path: Path, how: str
) -> None:
    """The work stops and nothing is written: by then the build may be another worker's."""
    rig = Rig(opened, Building(work_dir=tmp_path, lease_s=0.3, heartbeat_s=0.05))
    setattr(rig.builds, how, True)
    async with asyncio.timeout(10):
        await rig.attempt.run()
    assert rig.models.asked.is_set()
    assert (rig.builds.beats, rig.builds.waits_s, rig.builds.ended) == ([], [], [])
    assert not _left(tmp_path)


async def test_heartbeats_that_fail_for_a_while_lose_nothing(
    opened: Resources, tmp_path: Path
) -> None:
    """The lease holds longer than that: the next one is in time."""
    rig = Rig(opened, Building(work_dir=tmp_path, lease_s=5.0, heartbeat_s=0.05))
    rig.builds.away = True
    running = asyncio.create_task(rig.attempt.run())
    async with asyncio.timeout(10):
        for _ in range(3):
            await rig.builds.refused.wait()
            rig.builds.refused.clear()
        rig.builds.away = False
        await rig.builds.beaten.get()
    assert not running.done()
    rig.models.may_answer.set()
    await running
    assert len(rig.builds.waits_s) == 1


async def test_a_new_stage_is_written_at_once(
    opened: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches learns of it long before the next heartbeat is due."""
    monkeypatch.setattr(heartbeat, "_PROGRESS_EVERY_S", 60.0)
    rig = Rig(opened, Building(work_dir=tmp_path, lease_s=120.0, heartbeat_s=60.0))
    running = asyncio.create_task(rig.attempt.run())
    await rig.models.asked.wait()
    async with asyncio.timeout(10):
        assert await rig.builds.beaten.get() == Progress("pull")
        for progress in (Progress("index", 1, 9), Progress("matrix", 1, 9)):
            rig.attempt.report(progress)
            assert await rig.builds.beaten.get() == progress
    rig.models.may_answer.set()
    await running


async def test_progress_within_a_stage_is_written_soon(
    opened: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause, not with the next heartbeat that is due; and it is written once."""
    monkeypatch.setattr(heartbeat, "_PROGRESS_EVERY_S", 0.05)
    rig = Rig(opened, Building(work_dir=tmp_path, lease_s=120.0, heartbeat_s=60.0))
    running = asyncio.create_task(rig.attempt.run())
    async with asyncio.timeout(10):
        assert await rig.builds.beaten.get() == Progress("pull")
        for rows in (1000, 2000):
            rig.attempt.report(Progress("pull", rows))
            assert await rig.builds.beaten.get() == Progress("pull", rows)
    rig.models.may_answer.set()
    await running
    assert rig.builds.beats == [Progress("pull", rows) for rows in (0, 1000, 2000)]


async def _waits_s(
    opened: Resources, directory: Path, *, faults: int, attempts: int = 25
) -> list[float]:
    """How long attempts wait at a build that has had so many faults."""
    waits_s = []
    build = msgspec.structs.replace(BUILD, faults=faults)
    for _ in range(attempts):
        rig = Rig(opened, Building(work_dir=directory, build_attempts_max=100), build)
        rig.models.may_answer.set()
        await rig.attempt.run()
        waits_s += rig.builds.waits_s
    assert len(waits_s) == attempts
    return waits_s


async def test_attempts_wait_for_longer_each_time_and_with_jitter(
    opened: Resources, tmp_path: Path
) -> None:
    """What fails together does not come back together, nor for ever at once."""
    first, third = [await _waits_s(opened, tmp_path, faults=faults) for faults in (0, 2)]
    last = await _waits_s(opened, tmp_path, faults=50)
    assert 0 <= min(first) < max(first) <= 1
    assert 1 < max(third) <= 4 < max(last) <= 60
    for waits_s in (first, third, last):
        assert len(set(waits_s)) > len(waits_s) / 2


@pytest.mark.parametrize(("lost", "runs"), [(4, True), (5, False)])
async def test_as_many_workers_as_allowed_may_be_lost(
    opened: Resources,
    tmp_path: Path,
    lost: int,
    runs: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """One attempt more than that is not made: the build seems to take its workers with it."""
    building = Building(work_dir=tmp_path, build_losses_max=5)
    rig = Rig(opened, building, msgspec.structs.replace(BUILD, unreturned=lost + 1))
    rig.models.may_answer.set()
    await rig.attempt.run()
    assert (rig.models.asked.is_set(), rig.builds.ended) == (runs, [] if runs else ["failed"])


async def test_the_reason_in_the_row_names_no_table(opened: Resources, tmp_path: Path) -> None:
    """Readers of builds see it; the name is in the worker's log."""
    said = []
    for attempts in (2, 1):
        rig = Rig(opened, Building(work_dir=tmp_path, build_attempts_max=attempts))
        rig.models.may_answer.set()
        await rig.attempt.run()
        said += rig.builds.errors
    assert said == ["a table is missing", "gave up after 1 attempts: a table is missing"]
