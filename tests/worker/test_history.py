"""Versions over time: what changed, what is kept, what is pinned, and what can be made again."""

import asyncio
from datetime import timedelta
from functools import partial

import msgspec
import numpy as np
import pytest

from core.errors import NotFound, Pinned
from core.index.manifest import MANIFEST, Manifest, decode_manifest
from core.models import Build, BuildParameters, Embedding, now
from core.names import version_prefix, versions_prefix
from core.repositories.verifications import Verification, result_of
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.worker.work import build, store, work
from worker.building.protocol import BuildSpec
from worker.retention import apply_retention


def changed(settings: Settings, **building: object) -> Settings:
    """The settings with others for building."""
    return msgspec.structs.replace(
        settings, building=msgspec.structs.replace(settings.building, **building)
    )


async def overwrite(resources: Resources, model_version: str, rows: int, seed: int) -> None:
    """Gives the first rows other vectors."""
    vectors = np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)
    entries = [(f"p{row:05d}", vector) for row, vector in enumerate(vectors)]
    await resources.embedding_service.store_batch(model_version, entries)


async def stored_builds(resources: Resources, model_version: str) -> set[str]:
    """`{build_id}/{fence}` of all that S3 has."""
    prefix = versions_prefix(resources.settings.environment, model_version)
    keys = await resources.objects.list_keys(prefix)
    return {"/".join(key.removeprefix(prefix).split("/")[:2]) for key in keys}


def try_prefix(resources: Resources, model_version: str, build_id: str, fence: int) -> str:
    """Where a worker puts the files of a try."""
    return version_prefix(resources.settings.environment, model_version, build_id, fence)


async def rows_of(resources: Resources, model_version: str) -> list[Embedding]:
    """Every row, tombstones too."""
    model = await resources.models.get_model(model_version)
    pages = resources.embeddings.get_embeddings_by_model(model)
    return [row async for page in pages for row in page]


async def test_history_tells_what_changed(resources: Resources, model_version: str) -> None:
    """Products added and gone, the overlap of neighbours, and who changed most."""
    await store(resources, model_version, 200)
    first = await build(resources, model_version)
    assert first.manifest is not None
    assert first.manifest["changes"] is None
    await overwrite(resources, model_version, 1, seed=9)
    await resources.embedding_service.store_embedding(
        model_version, "new", np.arange(8, dtype=np.float32) - 3.5
    )
    await resources.embedding_service.delete_embedding(model_version, "p00100")
    second = await build(resources, model_version)
    assert second.manifest is not None
    found = second.manifest["changes"]
    assert found["build_id"] == first.build_id
    assert (found["common"], found["added"], found["removed"]) == (199, 1, 1)
    assert (found["added_ids"], found["removed_ids"]) == (["new"], ["p00100"])
    assert found["most_changed"][0]["product_id"] == "p00000"
    assert 0.9 < found["overlap"] < 1
    assert second.manifest["stages"]["compare"] >= 0


async def test_a_build_that_changes_nearly_all_stops_unless_forced(
    resources: Resources, model_version: str
) -> None:
    """Other vectors for every product are more likely a mistake; the error says what to do."""
    await store(resources, model_version, 300)
    first = await build(resources, model_version)
    await overwrite(resources, model_version, 300, seed=5)
    stopped = await build(resources, model_version)
    assert (stopped.status, stopped.fence) == ("failed", 1)
    assert stopped.error is not None
    for word in ("0.3", first.build_id, "K9_OVERLAP_MIN", "force"):
        assert word in stopped.error
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.open_build_id) == (first.build_id, None)
    forced = await build(resources, model_version, BuildParameters(force=True))
    assert forced.status == "published"
    assert forced.manifest is not None
    assert forced.manifest["changes"]["overlap"] < 0.3


async def test_a_catalogue_that_grows_needs_no_force(
    resources: Resources, model_version: str
) -> None:
    """Twenty times the products push neighbours aside; nobody's are wrong."""
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((800, 8)).astype(np.float32)
    entries = [(f"p{row:05d}", vector) for row, vector in enumerate(vectors)]
    await resources.embedding_service.store_batch(model_version, entries[:40])
    await build(resources, model_version)
    await resources.embedding_service.store_batch(model_version, entries)
    grown = await build(resources, model_version)
    assert (grown.status, grown.error) == ("published", None)


async def test_a_version_that_is_lost_stops_no_build(
    resources: Resources, model_version: str
) -> None:
    """With all of S3 gone a build makes the same files again, under the same checksums."""
    await store(resources, model_version, 120)
    parameters = BuildParameters(deterministic=True)
    first = await build(resources, model_version, parameters)
    environment = resources.settings.environment
    keys = await resources.objects.list_keys(versions_prefix(environment, model_version))
    await resources.objects.delete(keys)
    second = await build(resources, model_version, parameters)
    assert second.status == "published"
    assert first.manifest is not None
    assert second.manifest is not None
    assert second.manifest["changes"] is None
    assert second.manifest["files"] == first.manifest["files"]


async def test_a_build_below_its_recall_is_not_published(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error tells recall and target and what to change; the build before it stays current."""
    await store(resources, model_version, 400)
    first = await build(resources, model_version)
    graph = partial(BuildSpec, family="hnsw_flat")  # so small a set would be searched exactly
    monkeypatch.setattr("worker.building.builder.BuildSpec", graph)
    ended = await build(resources, model_version, BuildParameters(target_recall=1.0))
    assert (ended.status, ended.fence, ended.manifest) == ("failed", 1, None)
    for word in ("recall@10 of 1.0000 (hnsw_flat)", "the target of 1.0", "lower target_recall"):
        assert word in (ended.error or "")
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.open_build_id) == (first.build_id, None)
    assert await stored_builds(resources, model_version) == {f"{first.build_id}/1"}


async def test_cost_is_told(resources: Resources, model_version: str) -> None:
    """Units from bytes, requests to S3, processor time and memory; the same in S3's manifest."""
    await store(resources, model_version, 500)
    ended = await build(resources, model_version)
    assert ended.manifest is not None
    cost = ended.manifest["cost"]
    size = 500 * (6 + 8 * 4)
    assert cost["rows_read"] == 500
    assert size < cost["read_bytes"] < 10 * size
    shards = (await resources.models.get_model(model_version)).shards
    least = np.ceil(cost["read_bytes"] / 4096) / 2
    assert least <= cost["read_units"] <= least + shards / 2
    assert cost["write_units"] >= 10
    assert cost["s3_requests"] == len(ended.manifest["files"]) + 1
    assert cost["processor_s"] > 0
    assert cost["peak_memory_bytes"] > 20_000_000
    assert ended.prefix is not None
    kept = decode_manifest(await resources.objects.get_bytes(ended.prefix + MANIFEST, 1 << 20))
    assert kept == msgspec.convert(ended.manifest, Manifest)


async def test_the_last_versions_are_kept_and_the_current_one(
    settings: Settings, model_version: str
) -> None:
    """Older ones go, with what lost claims left behind; a promoted one stays as long as it is."""
    async with open_resources(changed(settings, versions_kept=2, version_grace_s=0)) as resources:
        await store(resources, model_version, 20)
        builds = [await build(resources, model_version) for _ in range(2)]
        lost = try_prefix(resources, model_version, builds[1].build_id, 7) + "ids"
        await resources.objects.put(lost, b"left behind")
        builds.append(await build(resources, model_version))
        names = [f"{b.build_id}/1" for b in builds]
        assert await stored_builds(resources, model_version) == set(names[1:])
        gone = await resources.builds.get_build(builds[0].build_id)
        assert gone.removed_at is not None
        assert gone.manifest == builds[0].manifest
        builds.append(await build(resources, model_version))
        await resources.promotions.promote(model_version, builds[2].build_id)
    async with open_resources(changed(settings, versions_kept=1, version_grace_s=0)) as resources:
        await apply_retention(resources, model_version)
        names = [f"{b.build_id}/1" for b in builds]
        assert await stored_builds(resources, model_version) == set(names[2:])


async def test_what_no_try_will_publish_goes_and_no_more(
    resources: Resources, model_version: str
) -> None:
    """Of a failed build all goes, of one under way what lost claims left; unknown ones stay."""
    await store(resources, model_version, 5)
    model = await resources.models.get_model(model_version)

    async def leave(build_id: str, fence: int) -> str:
        prefix = try_prefix(resources, model_version, build_id, fence)
        await resources.objects.put(prefix + "ids", b"x")
        return f"{build_id}/{fence}"

    opened = await resources.builds.open_build(model, BuildParameters())
    failed = await resources.builds.claim(opened.build_id, 0)
    await leave(failed.build_id, 1)
    await resources.builds.end(failed, "failed", "on purpose")
    opened = await resources.builds.open_build(model, BuildParameters())
    for fence in (0, 1):
        await leave(opened.build_id, fence + 1)
        await resources.builds.claim(opened.build_id, fence, lease_s=0.001)
        await asyncio.sleep(0.01)
    unknown = await leave("of-another-table", 1)
    kept = await apply_retention(resources, model_version)
    assert (kept.removed, kept.retired, kept.watermark) == (0, False, None)
    stays = {f"{opened.build_id}/2", unknown}
    assert await stored_builds(resources, model_version) == stays
    await resources.builds.cancel(opened.build_id)
    await apply_retention(resources, model_version)
    assert await stored_builds(resources, model_version) == {unknown}


async def test_a_version_is_retired_before_it_goes(
    settings: Settings, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its grace time it can still be loaded, and promoted, which takes it back."""

    async def removed_a_minute_later(resources: Resources) -> int:
        with monkeypatch.context() as patch:
            patch.setattr("worker.retention.now", lambda: now() + timedelta(seconds=61))
            return (await apply_retention(resources, model_version)).removed

    async with open_resources(changed(settings, versions_kept=1, version_grace_s=60)) as resources:
        await store(resources, model_version, 20)
        first = await build(resources, model_version)
        await build(resources, model_version)
        assert (await resources.builds.get_build(first.build_id)).retired_at is not None
        assert f"{first.build_id}/1" in await stored_builds(resources, model_version)
        await resources.promotions.promote(model_version, first.build_id)
        assert await removed_a_minute_later(resources) == 0
        last = await build(resources, model_version)
        assert await removed_a_minute_later(resources) >= 1
        assert await stored_builds(resources, model_version) == {f"{last.build_id}/1"}


async def test_tombstones_go_once_no_version_needs_them(
    settings: Settings, model_version: str
) -> None:
    """One stays as long as a kept version was built before it; a row written again stays too."""
    quick = changed(settings, versions_kept=2, version_grace_s=0, watermark_lag_s=0.001)
    async with open_resources(quick) as resources:
        await store(resources, model_version, 30)
        await build(resources, model_version)
        await resources.embedding_service.delete_embedding(model_version, "p00003")
        await resources.embedding_service.delete_embedding(model_version, "p00004")
        await build(resources, model_version)
        assert sum(row.deleted_at is not None for row in await rows_of(resources, model_version))
        await resources.embedding_service.store_embedding(
            model_version, "p00004", np.ones(8, dtype=np.float32)
        )
        await build(resources, model_version)
        rows = {row.product_id: row for row in await rows_of(resources, model_version)}
        assert "p00003" not in rows
        assert rows["p00004"].deleted_at is None
        assert len(rows) == 29


async def test_an_automatic_build_leaves_a_promoted_one(
    resources: Resources, model_version: str
) -> None:
    """It is refused while one is pinned, and one under way ends as failed and says why."""
    await store(resources, model_version, 20)
    first = await build(resources, model_version)
    await build(resources, model_version, BuildParameters(matrix_k=4, force=True))
    asked = await resources.build_service.request_automatic(model_version)
    assert (asked.automatic, asked.parameters) == (True, BuildParameters(matrix_k=4))
    await resources.promotions.promote(model_version, first.build_id)
    await work(resources.settings)
    ended = await resources.builds.get_build(asked.build_id)
    assert ended.status == "failed"
    assert "pinned" in (ended.error or "")
    with pytest.raises(Pinned):
        await resources.build_service.request_automatic(model_version)
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.pinned) == (first.build_id, True)
    theirs = await build(resources, model_version)
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.pinned) == (theirs.build_id, False)


async def verified(resources: Resources, published: Build) -> tuple[Build, Verification | None]:
    """A verification of a build, at its end."""
    opened = await resources.verifications.open(published)
    await resources.queue.enqueue(opened.build_id, opened.fence)
    await work(resources.settings)
    ended = await resources.builds.get_build(opened.build_id)
    return ended, result_of(ended)


async def test_a_build_can_be_made_again(resources: Resources, model_version: str) -> None:
    """The same rows give the same checksums; changed rows are told apart from a difference."""
    await store(resources, model_version, 100)
    published = await build(resources, model_version)
    ended, found = await verified(resources, published)
    assert (ended.status, ended.error) == ("verified", None)
    assert found is not None
    assert published.manifest is not None
    assert set(found.compared) == set(published.manifest["files"])
    assert (found.differences, found.rows_changed) == ((), 0)
    await overwrite(resources, model_version, 3, seed=2)
    await resources.embedding_service.delete_embedding(model_version, "p00050")
    _, found = await verified(resources, published)
    assert found is not None
    assert found.rows_changed == 4
    assert "vectors.npy" in {difference.name for difference in found.differences}
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.open_build_id) == (published.build_id, None)
    history, _ = await resources.builds.list_builds(model_version, limit=10)
    assert [entry.build_id for entry in history] == [published.build_id]


async def test_a_build_that_is_gone_cannot_be_verified(
    resources: Resources, model_version: str
) -> None:
    """The verification fails and says so; it is tried no further."""
    await store(resources, model_version, 5)
    published = await build(resources, model_version)
    ended, found = await verified(resources, msgspec.structs.replace(published, build_id="nothing"))
    assert (ended.status, found) == ("failed", None)
    assert "nothing" in (ended.error or "")
    with pytest.raises(NotFound):
        await resources.builds.cancel(ended.build_id)
