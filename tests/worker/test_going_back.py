"""Earlier versions: what they need stays, and they can be made again."""

from functools import partial

import msgspec
import pytest

from core.index.manifest import Manifest
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.worker.test_history import changed, rows_of, verified
from tests.worker.work import build, store
from worker.building.protocol import BuildSpec
from worker.retention import apply_retention


async def test_a_version_in_its_grace_time_keeps_its_tombstones(
    settings: Settings, model_version: str
) -> None:
    """It can still be promoted, and what was deleted since must not come back with it."""
    own = changed(settings, versions_kept=1, version_grace_s=600, watermark_lag_s=0.001)
    async with open_resources(own) as resources:
        await store(resources, model_version, 20)
        first = await build(resources, model_version)
        await resources.embedding_service.delete_embedding(model_version, "p00003")
        for _ in range(2):
            await build(resources, model_version)
        assert (await resources.builds.get_build(first.build_id)).retired_at is not None
        rows = {row.product_id: row for row in await rows_of(resources, model_version)}
        assert rows["p00003"].deleted_at is not None
        await resources.promotions.promote(model_version, first.build_id)
    async with open_resources(changed(own, version_grace_s=0)) as resources:
        await resources.promotions.promote(model_version, first.build_id)
        await apply_retention(resources, model_version)
        rows = {row.product_id: row for row in await rows_of(resources, model_version)}
        assert rows["p00003"].deleted_at is not None


async def test_a_removed_version_is_not_verified(settings: Settings, model_version: str) -> None:
    """With its tombstones gone, a deletion could not be told from damage."""
    own = changed(settings, versions_kept=1, version_grace_s=0, watermark_lag_s=0.001)
    async with open_resources(own) as resources:
        await store(resources, model_version, 20)
        first = await build(resources, model_version)
        await resources.embedding_service.delete_embedding(model_version, "p00003")
        for _ in range(2):
            await build(resources, model_version)
        ended, found = await verified(resources, first)
        assert (ended.status, found) == ("failed", None)
        assert "was removed at" in (ended.error or "")


async def test_a_graph_can_be_made_again(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index too has the same bytes."""
    graph = partial(BuildSpec, family="hnsw_flat")  # so small a set would be searched exactly
    monkeypatch.setattr("worker.building.builder.BuildSpec", graph)
    await store(resources, model_version, 1500)
    published = await build(resources, model_version)
    manifest = msgspec.convert(published.manifest, Manifest)
    _, found = await verified(resources, published)
    assert found is not None
    assert (found.differences, found.rows_changed) == ((), 0)
    assert set(found.compared) == set(manifest.files)
    assert "index.faiss" in found.compared


async def test_the_times_of_rows_are_told_from_their_bytes(
    resources: Resources, model_version: str
) -> None:
    """Rows written just before a build are no reason to say that they changed since."""
    await store(resources, model_version, 50)
    published = await build(resources, model_version)
    manifest = msgspec.convert(published.manifest, Manifest)
    assert manifest.recent is not None
    assert manifest.recent.rows == 50
    await resources.dynamo.call(
        "update_item",
        TableName=resources.settings.table("embeddings"),
        Key={"product_id": {"S": "p00007"}, "model_version": {"S": model_version}},
        UpdateExpression="SET embedding_vector = :vector",
        ExpressionAttributeValues={":vector": {"B": b"\0\0\x80\x3f" * 8}},
    )
    _, found = await verified(resources, published)
    assert found is not None
    assert found.rows_changed == 0
    assert "vectors.npy" in {difference.name for difference in found.differences}
