"""What is removed after a publish, and when: in no slot, and after a grace time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from core.models import Build, BuildParameters
from core.queue import BuildJob
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.worker.processes import until
from tests.worker.test_durability import has_ended, requested, worker
from tests.worker.test_history import changed, stored_builds
from tests.worker.work import build, store
from worker.background import Background
from worker.building import garbage_collector
from worker.building.runner import BuildRunner
from worker.retention import apply_retention


@asynccontextmanager
async def shop(resources: Resources) -> AsyncIterator[BuildRunner]:
    """Slots to build in, closed at the end."""
    background = Background()
    runner = BuildRunner(resources, background)
    try:
        yield runner
    finally:
        await runner.close()
        await background.close()


async def built(resources: Resources, runner: BuildRunner, model_version: str) -> Build:
    """A build that was published, whatever is left to tidy up."""
    opened = await resources.build_service.request(model_version, BuildParameters())
    assert await runner.start(BuildJob(opened.build_id, opened.fence))
    await runner.drain()
    ended = await resources.builds.get_build(opened.build_id)
    assert ended.status == "published"
    return ended


async def test_versions_go_after_their_grace_time_without_another_build(
    settings: Settings, model_version: str
) -> None:
    """Each that was replaced, also one that was so while an earlier one still waited."""
    quick = changed(settings, versions_kept=1, version_grace_s=1.5)
    async with open_resources(quick) as resources, shop(resources) as runner:
        await store(resources, model_version, 10)
        first = await built(resources, runner, model_version)
        await built(resources, runner, model_version)
        await asyncio.sleep(0.5)
        last = await built(resources, runner, model_version)
        stored = await stored_builds(resources, model_version)
        async with asyncio.timeout(30):
            while len(stored) > 1:
                await asyncio.sleep(0.1)
                stored = await stored_builds(resources, model_version)
        assert stored == {f"{last.build_id}/1"}
        assert (await resources.builds.get_build(first.build_id)).removed_at is not None


async def test_tidying_up_holds_up_no_build(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 that hangs over what is to be removed keeps the next build out of no slot."""
    begun = asyncio.Event()

    async def stuck(*_arguments: object) -> bool:
        begun.set()
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(garbage_collector, "collect", stuck)
    async with worker(settings, jobs_max=1):
        for number in range(2):
            build_id = await requested(resources, f"{model_version}-{number}")
            assert (await until(resources, build_id, has_ended)).status == "published"
        async with asyncio.timeout(10):
            await begun.wait()


async def test_a_version_that_a_rule_keeps_again_is_not_retired(
    settings: Settings, model_version: str
) -> None:
    """With more versions to keep, one that waited for its removal stays."""
    async with open_resources(changed(settings, versions_kept=1)) as resources:
        await store(resources, model_version, 10)
        first = await build(resources, model_version)
        await build(resources, model_version)
        assert (await resources.builds.get_build(first.build_id)).retired_at is not None
    quick = changed(settings, versions_kept=2, version_grace_s=0)
    async with open_resources(quick) as resources:
        assert not (await apply_retention(resources, model_version)).retired
        assert (await resources.builds.get_build(first.build_id)).retired_at is None
        assert len(await stored_builds(resources, model_version)) == 2


async def test_a_build_that_is_promoted_during_a_round_is_not_retired(
    settings: Settings, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round looked at the model before: what is current by now is left as it is."""
    async with open_resources(changed(settings, versions_kept=1)) as resources:
        await store(resources, model_version, 10)
        first = await build(resources, model_version)
        await build(resources, model_version)
        find_build = resources.builds.find_build

        async def late(build_id: str) -> Build | None:  # between two reads of the round
            if build_id == first.build_id:
                monkeypatch.undo()  # the promotion reads builds too
                await resources.promotions.promote(model_version, build_id)
            return await find_build(build_id)

        monkeypatch.setattr(resources.builds, "find_build", late)
        await apply_retention(resources, model_version)
        assert (await resources.builds.get_build(first.build_id)).retired_at is None
