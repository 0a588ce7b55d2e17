"""Every file of a version, cut short and with one bit wrong, in S3 and in the cache: refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from core.errors import Corrupt
from core.index.manifest import MANIFEST, Manifest
from core.index.version import MAPPED, MappedVersion
from core.names import version_prefix
from core.object_store import ObjectStore, open_object_store
from core.settings import Settings
from core.versions import VersionRecord, VersionStore
from tests.faults.damage import DAMAGE
from tests.unit.api.serving.versions import DIMENSION, make, model_of, record_of
from tests.worker.forgery import replace_object
from tests.worker.work import ensure

ENVIRONMENT = "e"
FENCE = 1
ROWS = 400


def refused(where: str) -> float:
    """How many versions were refused so far."""
    return REGISTRY.get_sample_value("k9_versions_refused_total", {"reason": where}) or 0.0


class Published:
    """A version in S3, and a store with a cache of its own."""

    def __init__(self, objects: ObjectStore, store: VersionStore, record: VersionRecord) -> None:
        self.objects = objects
        self.store = store
        self.record = record


async def put(store: VersionStore, directory: Path, manifest: Manifest) -> VersionRecord:
    """Puts a version to S3; what the builds table would say of it."""
    prefix = version_prefix(ENVIRONMENT, "m", manifest.build_id, FENCE)
    await store.upload(prefix, directory, manifest.files)
    await store.put_manifest(prefix, manifest)
    return record_of(manifest, prefix, FENCE)


@pytest.fixture(scope="module")
async def objects(stack_settings: Settings) -> AsyncIterator[ObjectStore]:
    """The bucket."""
    async with open_object_store(stack_settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """One with every file that serving maps: a graph over near copies too, and attributes."""
    directory = tmp_path_factory.mktemp("version")
    random = np.random.default_rng(2)
    rows = random.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    noise = random.standard_normal((ROWS // 8, DIMENSION)).astype(np.float32)
    rows[: ROWS // 8] = rows[-1] + np.float32(1e-6) * noise
    ids = [f"p{row:03d}" for row in range(ROWS)]
    manifest = make(
        directory, "b-1", ids, rows=rows, family="hnsw_flat", attributes={"p001": {"a": 1}}
    )
    assert set(MAPPED) <= set(manifest.files)
    return directory / "out", manifest


@pytest.fixture
async def published(
    objects: ObjectStore, version: tuple[Path, Manifest], tmp_path: Path
) -> Published:
    """The version under a name of this test's own."""
    directory, made = version
    build_id = uuid4().hex
    manifest = msgspec.structs.replace(made, build_id=build_id)
    store = VersionStore(objects, ENVIRONMENT, tmp_path / "cache")
    return Published(objects, store, await put(store, directory, manifest))


@pytest.mark.parametrize("damage", DAMAGE)
async def test_each_damaged_object_is_refused(published: Published, damage: str) -> None:
    """And is taken again once it is mended; a count and a line tell each time."""
    store, record = published.store, published.record
    for name in (*MAPPED, MANIFEST):
        key = published.record.prefix + name
        whole = await published.objects.get_bytes(key, 1 << 20)
        await replace_object(published.objects, key, DAMAGE[damage](whole))
        before = refused("s3")
        with capture_logs() as lines, pytest.raises(Corrupt):
            await ensure(store, record)
        assert refused("s3") == before + 1
        (line,) = [line for line in lines if line["event"] == "index version refused"]
        told = line["model_version"], line["build_id"], line["file"], line["where"]
        assert told == ("m", record.build_id, name, "s3")
        assert line["reason"]
        assert list(store.directory(record).parent.iterdir()) == []
        await replace_object(published.objects, key, whole)
    directory, manifest = await ensure(store, record)
    assert MappedVersion.open(directory, manifest).searcher.n == ROWS


@pytest.mark.parametrize("damage", DAMAGE)
async def test_each_damaged_file_is_fetched_again(published: Published, damage: str) -> None:
    """The copy on this disk is refused, counted and told of, and the one in S3 taken."""
    store, record = published.store, published.record
    directory, manifest = await ensure(store, record)
    for name in (*MAPPED, MANIFEST):
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(DAMAGE[damage](whole))
        before = refused("cache")
        with capture_logs() as lines:
            assert await ensure(store, record) == (directory, manifest)
        assert refused("cache") == before + 1
        (line,) = [line for line in lines if line["event"] == "index version refused"]
        assert (line["file"], line["where"]) == (name, "cache")
        assert (directory / name).read_bytes() == whole
    assert MappedVersion.open(directory, manifest).searcher.n == ROWS


async def test_a_spare_version_is_one_that_holds(
    objects: ObjectStore,
    version: tuple[Path, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The latest but the current one, and of the same data; a damaged one is passed over."""
    monkeypatch.setattr("core.versions._FALLBACKS", 2)
    store = VersionStore(objects, ENVIRONMENT, tmp_path / "cache")
    records = []
    for epoch in (0, 0, 0, 1):
        build_id = uuid4().hex
        manifest = msgspec.structs.replace(version[1], build_id=build_id, epoch=epoch)
        records.append(await put(store, version[0], manifest))
    for record in records:
        await ensure(store, record)
    first, second, third, other = records
    current = model_of(third.build_id, fence=FENCE)
    found = await store.fallback(current)
    assert found is not None
    assert found[0] == second
    assert found[1] == store.directory(second)
    index = store.directory(second) / "index.faiss"
    index.write_bytes(DAMAGE["a flipped bit"](index.read_bytes()))
    found = await store.fallback(current)
    assert found is not None
    assert found[1] == store.directory(first)
    await store.prune(third)
    assert store.directory(third).exists()
    assert store.directory(first).exists()
    assert not store.directory(other).exists(), "no spare for other data"
    assert await store.fallback(model_of(other.build_id, fence=FENCE, epoch=1)) is None
