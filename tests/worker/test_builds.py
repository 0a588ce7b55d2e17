"""Builds from request to publish: a worker in burst mode, on real parts."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from core.errors import BuildConflict, Corrupt, EmptyModel, NotFound
from core.index.version import MappedVersion
from core.models import BuildParameters, now, timestamp
from core.repositories.embedding_rows import live_row
from core.resources import Resources
from core.settings import Settings
from tests.worker.work import build, current, ensure, lose_redis, reconciled, store, work


async def test_a_build_is_published_and_can_be_served(
    resources: Resources, model_version: str
) -> None:
    """From stored rows to a version on disk whose neighbours are the true ones."""
    catalogue = await store(resources, model_version, 300)
    ended = await build(resources, model_version, BuildParameters(matrix_k=5))
    assert (ended.status, ended.error) == ("published", None)
    assert ended.manifest is not None
    assert ended.manifest["counts"]["rows"] == 300
    model = await resources.models.get_model(model_version)
    assert (model.current_build_id, model.open_build_id) == (ended.build_id, None)
    directory, manifest = await ensure(resources.versions, await current(resources, model))
    version = MappedVersion.open(directory, manifest)
    row = version.ids.row_of("p00007")
    assert row is not None
    rows, scores = version.neighbors[row, :5], version.scores[row, :5]
    matrix = np.stack(list(catalogue.values())).astype(np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    truth = matrix @ matrix[7]
    truth[7] = -2
    best = np.argsort(-truth)[:5]
    assert version.ids.ids_of(rows) == [f"p{index:05d}" for index in best]
    np.testing.assert_allclose(scores, truth[best], rtol=1e-5)


async def test_the_same_request_gets_the_open_build(
    resources: Resources, model_version: str
) -> None:
    """While a build is open the same request answers with it, and a different one conflicts."""
    await store(resources, model_version, 20)
    first = await resources.build_service.request(model_version, BuildParameters())
    again = await resources.build_service.request(model_version, BuildParameters())
    assert again.build_id == first.build_id
    with pytest.raises(BuildConflict, match=first.build_id):
        await resources.build_service.request(model_version, BuildParameters(matrix_k=3))
    await work(resources.settings)
    assert (await resources.builds.get_build(first.build_id)).status == "published"


async def test_an_empty_model_is_not_built(resources: Resources, model_version: str) -> None:
    """Without a row there is nothing to build, and nothing is opened."""
    with pytest.raises(NotFound):
        await resources.build_service.request(model_version, BuildParameters())
    await store(resources, model_version, 1)
    await resources.embedding_service.delete_embedding(model_version, "p00000")
    with pytest.raises(EmptyModel):
        await resources.build_service.request(model_version, BuildParameters())
    assert (await resources.models.get_model(model_version)).open_build_id is None


async def test_bad_rows_are_quarantined(resources: Resources, model_version: str) -> None:
    """Rows that no index can hold are left out, counted by reason, and fail nothing."""
    await store(resources, model_version, 50)
    model = await resources.models.get_model(model_version)
    bad = {
        "nan": np.full(8, np.nan, "<f4"),
        "infinite": np.full(8, np.inf, "<f4"),
        "zero": np.zeros(8, "<f4"),
        "short": np.ones(3, "<f4"),
    }
    rows = [(name, vector.tobytes()) for name, vector in bad.items()]
    assert await resources.embeddings.store_batch(model, rows) == []
    ended = await build(resources, model_version)
    assert ended.status == "published"
    assert ended.manifest is not None
    assert ended.manifest["counts"]["rows"] == 50
    assert sum(ended.manifest["counts"]["quarantined"].values()) == 4


async def test_a_row_of_somebody_elses_making_fails_no_build(
    resources: Resources, model_version: str
) -> None:
    """A vector that is no list of numbers is a bad row; those beside it are read."""
    await store(resources, model_version, 50)
    model = await resources.models.get_model(model_version)
    row = live_row(model, "words", b"", timestamp(now()))
    row["embedding_vector"] = {"L": [{"S": "one"}, {"S": "two"}]}
    table = resources.settings.table("embeddings")
    await resources.dynamo.call("put_item", TableName=table, Item=row)
    ended = await build(resources, model_version)
    assert ended.manifest is not None
    assert ended.manifest["counts"]["rows"] == 50
    assert sum(ended.manifest["counts"]["quarantined"].values()) == 1
    found = await resources.embeddings.read_rows(model_version, ["words", "p00001"])
    assert {row.product_id: row.vector is None for row in found} == {"words": True, "p00001": False}
    with pytest.raises(Corrupt):
        await resources.embeddings.get_embedding(model_version, "words")


async def test_a_build_of_bad_rows_alone_fails_and_says_so(
    resources: Resources, model_version: str
) -> None:
    """A build that has no good row ends as failed, with its reason, and is not tried again."""
    await store(resources, model_version, 1)
    model = await resources.models.get_model(model_version)
    zero = np.zeros(8, "<f4").tobytes()
    await resources.embeddings.store_batch(model, [("p00000", zero)])
    ended = await build(resources, model_version)
    assert (ended.status, ended.fence) == ("failed", 1)
    assert ended.error
    assert (await resources.models.get_model(model_version)).open_build_id is None


async def test_deleted_products_are_not_built(resources: Resources, model_version: str) -> None:
    """What was deleted before a build is not in it, and is counted as a tombstone."""
    await store(resources, model_version, 30)
    await resources.embedding_service.delete_embedding(model_version, "p00003")
    ended = await build(resources, model_version)
    assert ended.manifest is not None
    assert ended.manifest["counts"]["rows"] == 29
    assert ended.manifest["counts"]["tombstones"] == 1
    model = await resources.models.get_model(model_version)
    directory, manifest = await ensure(resources.versions, await current(resources, model))
    assert MappedVersion.open(directory, manifest).ids.row_of("p00003") is None


async def test_a_lost_message_is_made_good(resources: Resources, model_version: str) -> None:
    """A build whose hint was lost with Redis is enqueued again from the table."""
    await store(resources, model_version, 20)
    opened = await resources.build_service.request(model_version, BuildParameters())
    await lose_redis(resources)
    await work(resources.settings)
    assert (await resources.builds.get_build(opened.build_id)).status == "queued"
    assert await reconciled(resources) >= 1
    await work(resources.settings)
    assert (await resources.builds.get_build(opened.build_id)).status == "published"


async def test_a_child_that_crashes_is_tried_again_and_then_fails(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build whose child dies without a word is tried a set number of times, then fails."""
    await store(resources, model_version, 20)
    crash = Path(settings.building.work_dir) / "crash"
    crash.parent.mkdir(parents=True)
    crash.write_text("#!/bin/sh\nkill -9 $$\n")
    crash.chmod(0o700)
    monkeypatch.setattr("worker.building.launcher.sys.executable", str(crash))
    opened = await resources.build_service.request(model_version, BuildParameters())
    for _ in range(settings.building.build_attempts_max):
        await work(settings)
        ended = await resources.builds.get_build(opened.build_id)
        if ended.status == "running":
            assert ended.error is not None
            assert "killed" in ended.error
            while await reconciled(resources) == 0:  # noqa: ASYNC110 - the table has no event
                await asyncio.sleep(0.05)
    ended = await resources.builds.get_build(opened.build_id)
    assert (ended.status, ended.fence) == ("failed", settings.building.build_attempts_max)
    assert ended.error is not None
    assert "killed" in ended.error
