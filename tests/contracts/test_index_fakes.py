"""What serving loads indexes from: versions, builds, notifications, and the fakes of each."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from core.errors import Corrupt, NotFound
from core.index.version import mapped_files
from core.models import BuildParameters, Model
from core.notifications import ChangeNotifier, open_notifier
from core.object_store import open_object_store
from core.repositories.builds import BuildRepository
from core.repositories.promotions import PromotionRepository
from core.settings import Settings
from core.versions import VersionRecord, VersionStore
from tests.unit.api.serving.fakes import FakeBuilds, FakeModels, FakeNotifier, FakeVersions
from tests.unit.api.serving.versions import damaged, make, model_of, record_of

Publish = Callable[..., Awaitable[VersionRecord]]
IDS: Final = ("a", "b", "c")
MANIFEST: Final = {"rows": 3}


@pytest.fixture(params=["store", "fake"])
async def published(
    request: pytest.FixtureRequest, settings: Settings, tmp_path: Path
) -> AsyncIterator[tuple[VersionStore, Publish]]:
    """Versions, and how a test publishes one: the record that the builds table then has."""
    if request.param == "fake":
        fake = FakeVersions(tmp_path)

        async def add(build_id: str, ids: Sequence[str] = IDS, **options: Any) -> VersionRecord:
            fake.add(build_id, ids, **options)
            return record_of(fake.manifests[build_id])

        yield fake, add
        return
    async with open_object_store(settings) as objects:
        store = VersionStore(objects, settings.environment, tmp_path / "cache")

        async def upload(build_id: str, ids: Sequence[str] = IDS, **options: Any) -> VersionRecord:
            manifest = make(tmp_path / build_id, build_id, ids, **options)
            record = record_of(manifest, f"{tmp_path.name}/{build_id}/1/")
            await store.upload(record.prefix, tmp_path / build_id / "out", manifest.files)
            await store.put_manifest(record.prefix, manifest)
            return record

        yield store, upload


async def test_a_version_is_cached_by_its_download(published: tuple[VersionStore, Publish]) -> None:
    """In its directory, with the manifest; what the builds table said of it is remembered."""
    versions, publish = published
    record = await publish("b-1")
    assert await versions.cached(record) is None
    assert await versions.remembered(model_of("b-1")) == VersionRecord("m", "b-1", 1, "")
    directory, manifest = await versions.download(record)
    assert (directory, manifest.counts.rows) == (versions.directory(record), len(IDS))
    assert set(mapped_files(manifest)) <= {path.name for path in directory.iterdir()}
    assert await versions.cached(record) == (directory, manifest)
    assert await versions.remembered(model_of("b-1")) == record


async def test_a_version_that_was_never_published_is_not_found(
    published: tuple[VersionStore, Publish],
) -> None:
    """Neither in the cache nor by a download."""
    versions, publish = published
    record = msgspec.structs.replace(await publish("b-1"), build_id="b-9", prefix="b-9/")
    assert await versions.cached(record) is None
    with pytest.raises(NotFound):
        await versions.download(record)


async def test_a_version_that_the_builds_table_has_not_is_refused(
    published: tuple[VersionStore, Publish],
) -> None:
    """Its download as well as its copy in the cache, which goes."""
    versions, publish = published
    record = await publish("b-1")
    _, manifest = await versions.download(record)
    other = record_of(damaged(manifest), record.prefix)
    with pytest.raises(Corrupt):
        await versions.download(other)
    assert await versions.cached(other) is None
    assert await versions.cached(record) is None


async def test_the_latest_other_version_of_the_same_data_is_the_fallback(
    published: tuple[VersionStore, Publish],
) -> None:
    """Neither the current one, nor one of the data before a restore, nor one that is not here."""
    versions, publish = published
    records = {name: await publish(name) for name in ("b-1", "b-2", "b-5")}
    records |= {name: await publish(name, epoch=1) for name in ("b-3", "b-4")}
    for name in ("b-1", "b-2", "b-3"):
        await versions.download(records[name])
    fallback = await versions.fallback(model_of("b-5"))
    assert fallback is not None
    assert (fallback[0], fallback[1]) == (records["b-2"], versions.directory(records["b-2"]))
    fallback = await versions.fallback(model_of("b-2"))
    assert fallback is not None
    assert fallback[0] == records["b-1"]
    assert await versions.fallback(model_of("b-3", epoch=1)) is None


async def test_pruning_keeps_the_current_version_and_clearing_none(
    published: tuple[VersionStore, Publish],
) -> None:
    """The one before it stays too."""
    versions, publish = published
    before, current = await publish("b-1"), await publish("b-2")
    for record in (before, current):
        await versions.download(record)
    await versions.prune(current)
    assert await versions.cached(current) is not None
    assert await versions.cached(before) is not None
    assert await versions.clear("another")
    assert await versions.cached(current) is not None
    assert await versions.clear("m")
    assert [await versions.cached(record) for record in (before, current)] == [None, None]


@pytest.mark.parametrize("fake", [False, True])
async def test_a_build_that_was_published(
    builds: BuildRepository,
    promotions: PromotionRepository,
    model: Model,
    fake: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """With its model version, fence, prefix and manifest; and so after its files are removed."""
    repository, build_id = builds, "b-1"
    pretended = FakeBuilds(FakeModels(msgspec.structs.replace(model, current_build_id=build_id)))
    if fake:
        repository = pretended
        pretended.manifests[build_id] = MANIFEST
    else:
        build_id = await _publish(builds, promotions, model)
    found = await repository.get_build(build_id)
    record = VersionRecord.of(found)
    assert (record.model_version, record.build_id) == (model.model_version, build_id)
    assert (record.fence, record.manifest) == (1, MANIFEST)
    assert record.prefix.endswith("/")
    assert (found.status, found.open, found.removed_at) == ("published", False, None)
    if fake:
        pretended.removed.add(build_id)
    else:
        await _publish(builds, promotions, model)  # the current one is never removed
        await promotions.retire(found)
        assert await promotions.remove(await builds.get_build(build_id))
    removed = await repository.get_build(build_id)
    assert removed.removed_at is not None
    assert VersionRecord.of(removed) == record


@pytest.mark.parametrize("fake", [False, True])
async def test_a_subscription_says_that_it_starts(
    valkey: str,
    settings: Settings,
    fake: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """What came before may have been missed; then every notification, in order."""
    async with AsyncExitStack() as stack:
        if fake:
            pretended = FakeNotifier()
            notifier: ChangeNotifier = pretended
            publish: Callable[..., None] = pretended.send
        else:
            opened = msgspec.structs.replace(settings, redis_url=valkey)
            notifier = await stack.enter_async_context(open_notifier(opened))

            def publish(*product_ids: str) -> None:
                notifier.publish("m", product_ids)

        subscription: Any = notifier.subscribe()
        await stack.enter_async_context(aclosing(subscription))
        async with asyncio.timeout(20):
            assert await anext(subscription) is None
            publish("a", "b")
            change = await anext(subscription)
            publish("c")
            last = await anext(subscription)
    assert change is not None
    assert (change.model_version, change.product_ids) == ("m", ("a", "b"))
    assert change.sent_ms > 0
    assert last is not None
    assert last.product_ids == ("c",)


async def _publish(builds: BuildRepository, promotions: PromotionRepository, model: Model) -> str:
    build = await builds.open_build(model, BuildParameters())
    claimed = await builds.claim(build.build_id, build.fence)
    await promotions.publish(claimed, model, MANIFEST)
    return build.build_id
