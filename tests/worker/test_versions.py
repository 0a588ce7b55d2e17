"""Index versions in S3 and in the cache: verified, repaired, never taken from under a reader."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from core.aws_calls import count_requests
from core.errors import NotFound
from core.index.cache import leased
from core.index.version import MappedVersion
from core.models import BuildParameters, Model
from core.resources import Resources, open_resources
from core.settings import Settings
from core.versions import VersionStore
from tests.worker.work import current, ensure, work


@pytest.fixture
async def resources(stack_settings: Settings, tmp_path: Path) -> AsyncIterator[Resources]:
    """Opened resources with directories of this test's own."""
    settings = msgspec.structs.replace(
        stack_settings,
        building=msgspec.structs.replace(stack_settings.building, work_dir=tmp_path / "work"),
        serving=msgspec.structs.replace(stack_settings.serving, cache_dir=tmp_path / "cache"),
    )
    async with open_resources(settings) as opened:
        yield opened


async def published(resources: Resources, model_version: str) -> Model:
    """The model version after one more build of twenty rows."""
    rng = np.random.default_rng(3)
    rows = [(f"p{row}", rng.standard_normal(4).astype(np.float32)) for row in range(20)]
    await resources.embedding_service.store_batch(model_version, rows)
    await resources.build_service.request(model_version, BuildParameters())
    await work(resources.settings)
    return await resources.models.get_model(model_version)


@pytest.fixture
async def model(resources: Resources) -> Model:
    """A model version with a published build."""
    return await published(resources, f"v-{uuid4().hex[:12]}")


async def test_a_version_is_downloaded_once(resources: Resources, model: Model) -> None:
    """The second time its files come from the cache, without a request."""
    record = await current(resources, model)
    directory, manifest = await ensure(resources.versions, record)
    assert MappedVersion.open(directory, manifest).searcher.n == 20
    with count_requests() as count:
        assert await ensure(resources.versions, record) == (directory, manifest)
    assert count.requests == 0


async def test_a_version_that_is_gone_is_not_found(resources: Resources, model: Model) -> None:
    """A version deleted from S3 and not in the cache says so."""
    record = await current(resources, model)
    await resources.objects.delete(await resources.objects.list_keys(record.prefix))
    with pytest.raises(NotFound):
        await ensure(resources.versions, record)


async def test_old_versions_go_but_not_from_under_a_reader(
    resources: Resources, model: Model
) -> None:
    """Pruning keeps the current version, the one before it, and any that is leased."""
    old, _ = await ensure(resources.versions, await current(resources, model))
    newer = await current(resources, await published(resources, model.model_version))
    before, _ = await ensure(resources.versions, newer)
    newest = await current(resources, await published(resources, model.model_version))
    new, _ = await ensure(resources.versions, newest)
    with leased(old):
        await resources.versions.prune(newest)
        assert old.exists()
    await resources.versions.prune(newest)
    assert not old.exists()
    assert before.exists()
    assert new.exists()


async def test_two_processes_may_fetch_the_same(
    resources: Resources, model: Model, tmp_path: Path
) -> None:
    """One of them downloads; the other waits, and takes what is there."""
    record = await current(resources, model)
    environment = resources.settings.environment
    other = VersionStore(resources.objects, environment, tmp_path / "cache")
    with count_requests() as alone:
        await resources.versions.download(record)
    await asyncio.to_thread(shutil.rmtree, resources.versions.directory(record))
    with count_requests() as count:
        first, second = await asyncio.gather(
            ensure(resources.versions, record), ensure(other, record)
        )
    assert first == second
    assert count.requests == alone.requests
    assert not list((tmp_path / "cache").rglob("downloads/*"))


async def test_a_download_that_fails_is_taken_up_by_another_process(
    resources: Resources, model: Model, tmp_path: Path
) -> None:
    """Which waited for it, and finds nothing."""
    record = await current(resources, model)
    absent = msgspec.structs.replace(record, prefix="nowhere/")
    other = VersionStore(resources.objects, resources.settings.environment, tmp_path / "cache")
    failed, found = await asyncio.gather(
        resources.versions.download(absent), other.download(record), return_exceptions=True
    )
    assert isinstance(failed, NotFound)
    assert found == await other.cached(record)
