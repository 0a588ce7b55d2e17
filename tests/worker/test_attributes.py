"""Attributes in a version: those of every row, in its order, as they were when it was pulled."""

import signal
from pathlib import Path

import msgspec
import numpy as np

from core.attributes.filters import parse_filter
from core.attributes.values import Attributes
from core.index.files import COLUMNS, IDS, REPORT
from core.index.version import MappedVersion
from core.models import Build, BuildParameters
from core.repositories.attribute_items import attributes_item
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.worker.processes import running, until
from tests.worker.test_durability import SLOW, SLOW_ROWS, has_ended, owner_of, published_once
from tests.worker.test_history import changed, stored_builds, verified
from tests.worker.work import build, current, ensure, store

ODD: tuple[Attributes, ...] = (
    {"brand": "Zoë", "price": 19.9, "stock": 3, "sold": False, "tags": ["b", "a", "b"]},
    {},
    {"brand": "acme", "price": 1e308, "huge": 9007199254740992, "empty": [], "blank": ""},
    {"price": "20", "stock": True, "a-b_C": -0.0},
)


async def stored_with_attributes(
    resources: Resources, model_version: str, rows: int
) -> dict[str, Attributes]:
    """Stores random rows with attributes; these, by product id."""
    generator = np.random.default_rng(rows)
    vectors = generator.standard_normal((rows, 8)).astype(np.float32)
    ids = [f"p{row:05d}" for row in range(rows)]
    own: list[Attributes] = [{**ODD[row % 4], "number": row} for row in range(rows)]
    for start in range(0, rows, 500):
        part = slice(start, start + 500)
        await resources.embedding_service.store_batch(
            model_version, list(zip(ids[part], vectors[part], strict=True)), attributes=own[part]
        )
    return dict(zip(ids, own, strict=True))


async def served(resources: Resources, model_version: str) -> tuple[MappedVersion, Path]:
    """The current version as an API process maps it, and its directory."""
    model = await resources.models.get_model(model_version)
    directory, manifest = await ensure(resources.versions, await current(resources, model))
    return MappedVersion.open(directory, manifest), directory


async def columns_of(resources: Resources, model_version: str) -> dict[str, Attributes]:
    """The attributes that the current version has, by product id."""
    version, _ = await served(resources, model_version)
    assert version.columns is not None
    return {
        version.ids[row].decode(): version.columns.attributes(row)
        for row in range(len(version.ids))
    }


def digests(published: Build) -> dict[str, str]:
    """The SHA-256 of every file of a version."""
    assert published.manifest is not None
    return {name: info["sha256"] for name, info in published.manifest["files"].items()}


async def test_attributes_reach_the_version_exactly(
    resources: Resources, model_version: str
) -> None:
    """Of rows with and without, changed, cleared, deleted, and stored again after a deletion."""
    own = await stored_with_attributes(resources, model_version, 40)
    service = resources.embedding_service
    await service.patch_attributes(model_version, "p00001", {"price": 5, "tags": ["x"]})
    await service.patch_attributes(model_version, "p00000", {"brand": None})
    ones = np.ones(8, dtype=np.float32)
    await service.store_embedding(model_version, "p00002", ones, attributes={})
    await service.store_embedding(model_version, "p00004", ones)
    for gone in ("p00003", "p00005"):
        await service.delete_embedding(model_version, gone)
    await service.store_embedding(model_version, "p00005", ones)
    await service.store_embedding(model_version, "a-bare-one", ones)
    ended = await build(resources, model_version)
    assert (ended.status, ended.error) == ("published", None)
    own |= {
        "p00001": {"number": 1, "price": 5, "tags": ["x"]},
        "p00000": {name: value for name, value in own["p00000"].items() if name != "brand"},
        "p00002": {},
        "p00005": {},
        "a-bare-one": {},
    }
    del own["p00003"]
    assert await columns_of(resources, model_version) == own
    version, _ = await served(resources, model_version)
    assert version.manifest.rows_with_attributes == sum(map(bool, own.values()))
    assert version.columns is not None
    mask = version.columns.select(parse_filter({"stock": {"$gte": 3}, "sold": False}))
    wanted = {name for name, each in own.items() if each.get("stock") == 3 and "sold" in each}
    assert set(version.ids.ids_of(np.flatnonzero(mask))) == wanted
    assert wanted


async def test_rows_without_attributes_have_no_columns(
    resources: Resources, model_version: str
) -> None:
    """Neither those that never had any nor those whose attributes were all removed; both serve."""
    await store(resources, model_version, 30)
    bare = await build(resources, model_version)
    assert COLUMNS not in digests(bare)
    await resources.embedding_service.patch_attributes(model_version, "p00001", {"a": 1})
    assert COLUMNS in digests(await build(resources, model_version))
    await resources.embedding_service.patch_attributes(model_version, "p00001", {"a": None})
    cleared = await build(resources, model_version)
    assert digests(cleared) == digests(bare)
    version, _ = await served(resources, model_version)
    assert version.columns is None
    assert version.manifest.rows_with_attributes == 0


async def test_columns_are_made_again_and_compared(
    resources: Resources, model_version: str
) -> None:
    """The same attributes give the same bytes, and changed ones are told apart from damage."""
    await stored_with_attributes(resources, model_version, 60)
    published = await build(resources, model_version)
    _, found = await verified(resources, published)
    assert found is not None
    assert COLUMNS in found.compared
    assert (found.differences, found.rows_changed) == ((), 0)
    await resources.embedding_service.patch_attributes(model_version, "p00007", {"price": 1})
    _, found = await verified(resources, published)
    assert found is not None
    assert ([each.name for each in found.differences], found.rows_changed) == ([COLUMNS], 1)


async def test_columns_that_are_too_large_fail_the_build(
    settings: Settings, model_version: str
) -> None:
    """It says how large they are and what to do, before the index is built; nothing is kept."""
    async with open_resources(changed(settings, columns_bytes_max=2000)) as resources:
        await stored_with_attributes(resources, model_version, 50)
        ended = await build(resources, model_version)
        assert (ended.status, ended.fence) == ("failed", 1)
        for word in ("attributes of the first", "of 50 rows", "2000", "remove attributes"):
            assert word in (ended.error or "")
        assert await stored_builds(resources, model_version) == set()


async def test_attributes_of_somebody_elses_making_fail_no_build(
    resources: Resources, model_version: str
) -> None:
    """A row whose attributes cannot be read is built without, and named; all others have theirs."""
    own = await stored_with_attributes(resources, model_version, 20)
    model = await resources.models.get_model(model_version)
    forged = {"p00004": "not json", "p00006": '{"n":1' + "0" * 400 + "}", "p00008": '["a"]'}
    for product_id, text in forged.items():
        item = attributes_item(model, product_id, {}, "2026-01-01T00:00:00.000000Z")
        item["attributes"] = {"S": text}
        table = resources.settings.table("embeddings")
        await resources.dynamo.call("put_item", TableName=table, Item=item)
    ended = await build(resources, model_version)
    assert (ended.status, ended.error) == ("published", None)
    assert await columns_of(resources, model_version) == own | {key: {} for key in forged}
    report = await resources.objects.get_bytes((ended.prefix or "") + REPORT, 1 << 20)
    assert msgspec.json.decode(report)["attributes_left_out"] == sorted(forged)


async def test_a_killed_workers_build_has_all_attributes(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """The attempt that follows a SIGKILL pulls them again, and publishes them once."""
    own = await stored_with_attributes(resources, model_version, SLOW_ROWS)
    async with running(settings) as first, running(settings) as second:
        asked = await resources.build_service.request(model_version, SLOW)
        owner = await owner_of(resources, asked.build_id, settings, first, second)
        owner.send_signal(signal.SIGKILL)
        ended = await until(resources, asked.build_id, has_ended)
    assert ended.fence == 2
    await published_once(resources, model_version, asked.build_id)
    assert await columns_of(resources, model_version) == own


async def test_a_cache_that_an_earlier_release_filled_is_completed(
    resources: Resources, model_version: str
) -> None:
    """That release downloads no columns; what it maps stays there for it."""
    own = await stored_with_attributes(resources, model_version, 20)
    await build(resources, model_version)
    version, directory = await served(resources, model_version)
    (directory / COLUMNS).unlink()
    assert await columns_of(resources, model_version) == own
    assert (directory / IDS).exists()
    assert version.ids.row_of("p00003") == 3


async def test_columns_go_with_their_version(settings: Settings, model_version: str) -> None:
    """A version that is no longer kept leaves no file in the bucket."""
    async with open_resources(changed(settings, versions_kept=1, version_grace_s=0)) as resources:
        await stored_with_attributes(resources, model_version, 20)
        first = await build(resources, model_version)
        second = await build(resources, model_version, BuildParameters(matrix_k=3))
        assert await resources.objects.list_keys(first.prefix or "") == []
        assert (second.prefix or "") + COLUMNS in await resources.objects.list_keys(
            second.prefix or ""
        )
