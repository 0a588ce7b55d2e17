"""Two environments on one bucket, one Redis and one disk: neither touches what is the other's."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import msgspec
import pytest

from core.aws_calls import count_requests
from core.index.version import MappedVersion
from core.models import BuildParameters, now
from core.names import directory_of, environment_prefix
from core.resources import Resources, open_resources
from core.settings import Settings
from core.versions import VersionRecord
from deploy.data.pitr import restore_to_time
from tests.worker.two_environments import (
    Pair,
    as_published_early,
    beside,
    files_of,
    open_pair,
    record_of,
)
from tests.worker.work import build, ensure, store, work
from worker.retention import apply_retention

ROWS = 20


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that keep one version only, and that for no time."""
    building = msgspec.structs.replace(settings.building, versions_kept=1, version_grace_s=0)
    return msgspec.structs.replace(settings, building=building)


@pytest.fixture
async def pair(settings: Settings) -> AsyncIterator[Pair]:
    """Two environments."""
    async with open_pair(settings) as opened:
        yield opened


async def answers(resources: Resources, model_version: str) -> int:
    """Rows of the current version, fetched and mapped as an API does."""
    _, record = await record_of(resources, model_version)
    return MappedVersion.open(*await ensure(resources.versions, record)).searcher.n


async def built_again(resources: Resources, model_version: str) -> VersionRecord:
    """The record of one more version."""
    ended = await build(resources, model_version, BuildParameters(force=True))
    assert ended.status == "published", ended.error
    await apply_retention(resources, model_version)
    return VersionRecord.of(ended)


async def test_a_restored_environment_builds_publishes_and_retires_beside_its_source(
    settings: Settings, model_version: str
) -> None:
    """`k9 restore --to-time` prints settings that share the bucket: both keep what is theirs."""
    async with open_resources(settings) as source:
        await store(source, model_version, ROWS)
        first = await built_again(source, model_version)
        name = f"t-{uuid4().hex[:12]}"
        builds = await restore_to_time(settings, now() - timedelta(hours=1), name) or []
        (asked,) = [entry for entry in builds if entry.model_version == model_version]
        restored = beside(settings, name)
        async with open_resources(restored) as other:
            await other.queue.enqueue(asked.detail, 0)
            await work(settings)  # the source's worker leaves it alone
            assert (await other.builds.get_build(asked.detail)).status == "queued"
            await work(restored)
            assert (await other.builds.get_build(asked.detail)).status == "published"
            await built_again(other, model_version)
            own = await built_again(other, model_version)
            assert own.prefix.startswith(environment_prefix(name))
            assert await files_of(source, first)
            assert (await source.builds.get_build(first.build_id)).removed_at is None
            assert (await other.builds.get_build(first.build_id)).retired_at is None
            second = await built_again(source, model_version)
            assert not await files_of(source, first)
            assert await files_of(source, second)
            assert await files_of(other, own)
            assert await answers(other, model_version) == ROWS
        assert await answers(source, model_version) == ROWS


async def test_one_build_that_both_have_is_built_by_both(pair: Pair, model_version: str) -> None:
    """Its id and fence are the same, and one Redis has the jobs of both."""
    await store(pair.source, model_version, ROWS)
    asked = await pair.source.build_service.request(model_version, BuildParameters())
    await pair.copy_tables()
    await pair.other.queue.enqueue(asked.build_id, asked.fence)
    prefixes = set()
    for resources in (pair.source, pair.other):
        await work(resources.settings)
        ended = await resources.builds.get_build(asked.build_id)
        assert (ended.status, ended.fence, ended.error) == ("published", 1, None)
        assert await answers(resources, model_version) == ROWS
        prefixes.add(ended.prefix)
    assert len(prefixes) == 2
    caches = {
        directory_of(each.settings.serving.cache_dir, each.settings.environment)
        for each in (pair.source, pair.other)
    }
    assert all(list(cache.rglob(f"{asked.build_id}.1/manifest.json")) for cache in caches)


@pytest.mark.parametrize("early", [False, True])
async def test_what_another_environment_published_is_read_and_never_retired(
    pair: Pair,
    model_version: str,
    early: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Also files of releases without environments in their names; their own one retires them."""
    await store(pair.source, model_version, ROWS)
    published = await build(pair.source, model_version)
    record = VersionRecord.of(published)
    if early:
        record = await as_published_early(pair.source, published)
    await pair.copy_tables()
    assert await answers(pair.other, model_version) == ROWS
    for _ in range(2):
        await built_again(pair.other, model_version)
    kept = await pair.other.builds.get_build(published.build_id)
    assert (kept.retired_at, kept.removed_at) == (None, None)
    assert await files_of(pair.source, record)
    assert await answers(pair.source, model_version) == ROWS
    await built_again(pair.source, model_version)
    assert not await files_of(pair.source, record)
    assert (await pair.source.builds.get_build(published.build_id)).removed_at is not None


async def test_copies_of_an_earlier_release_are_taken_over(
    resources: Resources, model_version: str
) -> None:
    """They are found where it put them, and what it would have removed goes in time."""
    await store(resources, model_version, ROWS)
    versions, settings = resources.versions, resources.settings
    early_dir = settings.serving.cache_dir / "versions" / model_version
    early_dir.mkdir(parents=True)
    records = []
    for _ in range(2):
        records.append(VersionRecord.of(await build(resources, model_version)))
        directory, _ = await ensure(versions, records[-1])
        (directory / "record.json").unlink()
        directory.rename(early_dir / directory.name)
    record = records[-1]
    with count_requests() as count:
        found, _ = await ensure(versions, record)
    assert count.requests == 0
    assert found.is_relative_to(directory_of(settings.serving.cache_dir, settings.environment))
    await versions.prune(record)
    assert list(early_dir.iterdir()) == []
    assert found.exists()
