"""Data of a later release: a worker says so, does nothing, and goes on once it may."""

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from core.errors import NewerFormat
from core.index.manifest import MANIFEST
from core.models import BuildParameters
from core.queue import BuildJob
from core.resources import Resources
from core.settings import Settings
from tests.api.shop import until as until_true
from tests.contracts.test_newer_formats import make_newer, newer_tables
from tests.worker.processes import until
from tests.worker.test_durability import has_ended, published_once, requested, worker
from tests.worker.two_environments import open_pair
from tests.worker.work import build, current, ensure, store
from worker.context import open_context


def make_manifest_newer(directory: Path) -> None:
    """Gives the manifest of a cached version the format of a later release."""
    path = directory / MANIFEST
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"format": 3}))


def format_in(directory: Path) -> int:
    """The format of a cached version, which must be there."""
    number: int = msgspec.json.decode((directory / MANIFEST).read_bytes())["format"]
    return number


async def test_no_work_begins_on_newer_tables(settings: Settings, model_version: str) -> None:
    """A build waits as it was requested; it is done once the tables are readable again."""
    async with open_pair(settings) as pair, AsyncExitStack() as stack:
        resources = pair.other
        build_id = await requested(resources, model_version)
        before = await resources.builds.get_build(build_id)
        lines = stack.enter_context(capture_logs())

        async def told() -> bool:
            return any(line["event"] == "work refused" for line in lines)

        async with newer_tables(resources.dynamo, resources.settings):
            context = await stack.enter_async_context(worker(resources.settings, reconcile_s=0.1))
            await until_true(told)
            assert context.runner.free_slots == 0
            assert not await context.runner.start(BuildJob(build_id, before.fence))
            assert await resources.builds.get_build(build_id) == before
        await until(resources, build_id, has_ended)
        await published_once(resources, model_version, build_id)
        (line,) = [line for line in lines if line["event"] == "work refused"]
        assert "format 2" in line["reason"]
        assert "Upgrade" in line["reason"]


async def test_a_build_of_a_newer_model_version_is_left_to_others(
    resources: Resources, settings: Settings, model_version: str
) -> None:
    """It is released with the reason, and counts no fault: it is not failed by a later attempt."""
    await store(resources, model_version, 20)
    asked = await resources.build_service.request(model_version, BuildParameters())
    await make_newer(resources.dynamo, settings, "models", model_version=model_version)
    async with open_context(settings, reconcile=False) as context:
        assert await context.runner.start(BuildJob(asked.build_id, asked.fence))
        await context.runner.drain()
    left = await resources.builds.get_build(asked.build_id)
    assert (left.open, left.faults, left.unreturned) == (True, 0, 0)
    assert "format 2" in (left.error or "")


async def test_a_newer_manifest_is_neither_served_nor_removed(
    resources: Resources, model_version: str
) -> None:
    """Neither from S3 nor from a cache that a later release has filled."""
    await store(resources, model_version, 20)
    await build(resources, model_version)
    record = await current(resources, await resources.models.get_model(model_version))
    directory, _ = await ensure(resources.versions, record)
    make_manifest_newer(directory)
    with pytest.raises(NewerFormat, match=r"format 3, .* up to 2: .* Upgrade"):
        await resources.versions.cached(record)
    assert (
        await resources.versions.fallback(
            msgspec.structs.replace(
                await resources.models.get_model(model_version), current_build_id="another"
            )
        )
        is None
    )
    assert format_in(directory) == 3
