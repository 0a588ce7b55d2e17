"""`DELETE /models/{model_version}`: refused everywhere else until it is done, then a free name."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from core.errors import NotFound
from core.resources import Resources, open_resources
from tests.api.conftest import Service, filled
from tests.api.serving import assert_problem, client_of, path_of, vector
from worker.model_deletion import delete_model


@pytest.fixture
async def worker(service: Service) -> AsyncIterator[Resources]:
    """A worker's, which waits for nobody's writes: in these tests they are done."""
    settings = service.settings
    quick = msgspec.structs.replace(
        settings,
        ingest=msgspec.structs.replace(
            settings.ingest, model_cache_s=0.01, batch_deadline_s=0.01, write_settle_s=0.01
        ),
        building=msgspec.structs.replace(settings.building, lease_s=0.2),
    )
    async with open_resources(quick) as opened:
        yield opened


async def deleted(worker: Resources, model: str) -> None:
    """Has a worker go on until the model version is gone."""
    async with asyncio.timeout(60):
        while True:
            try:
                await delete_model(worker, await worker.models.find_model(model))
            except NotFound:
                return
            await asyncio.sleep(0.02)


async def test_until_it_is_done_every_other_route_is_a_conflict(
    service: Service, worker: Resources
) -> None:
    """GET says so; an invalid body is told first; the same key gives the same answer."""
    client, model = service.client, "m-deleting"
    await filled(service, model, 5, 4)
    build_id = (await client.get(path_of(model))).json()["current_build"]["build_id"]
    async with client_of(service.app, service.pool.token()) as caller:
        assert_problem(await caller.delete(path_of(model)), 403)
    key = {"idempotency-key": "delete-m-deleting"}
    answers = [await client.delete(path_of(model), headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].content == answers[1].content
    shown = (await client.get(path_of(model))).json()
    assert shown["deleting_at"] == answers[0].json()["deleting_at"] is not None
    assert shown["loaded"] is None
    listed = (await client.get("/models", params={"limit": 100})).json()["items"]
    assert model in {item["model_version"] for item in listed if item["deleting_at"]}
    good, product = {"vector": [1.0, 2.0, 3.0, 4.0]}, path_of(model, "embeddings", "p1")
    batch = {"embeddings": [{"product_id": "p1", **good}]}
    for reply in (
        await client.delete(path_of(model)),
        await client.patch(path_of(model), json={"internal_attributes": ["cost"]}),
        await client.put(product, json=good),
        await client.put(product, json=good, headers={"idempotency-key": "put-m-deleting"}),
        await client.post(path_of(model, "embeddings:batch"), json=batch),
        await client.get(product),
        await client.patch(product, json={"attributes": {"a": 1}}),
        await client.delete(product),
        await client.get(path_of(model, "embeddings")),
        await client.post(path_of(model, "search"), json=good),
        await client.post(path_of(model, "search"), json={"product_id": "p1"}),
        await client.get(path_of(model, "products", "p1", "neighbors")),
        await client.get(path_of(model, "matrix")),
        await client.post(path_of(model, "builds"), json={}),
        await client.get(path_of(model, "builds")),
        await client.post(
            path_of(model, "imports"),
            json={"upload": True, "content_length": 1, "sha256": "0" * 64},
        ),
        await client.get(path_of(model, "imports")),
        await client.post(path_of(model, "promote"), json={"build_id": build_id}),
    ):
        assert_problem(reply, 409, "model-being-deleted")
    for path in (product, path_of(model, "search")):
        method = "PUT" if path == product else "POST"
        assert_problem(await client.request(method, path, json={"vector": []}), 422, "invalid")
    await deleted(worker, model)
    assert_problem(await client.get(path_of(model)), 404, "not-found")
    later = await client.put(product, json=good, headers={"idempotency-key": "put-m-deleting"})
    assert later.status_code == 201  # the refusal has passed, and was not kept


async def test_nothing_of_the_earlier_model_shows_in_the_later(
    service: Service, worker: Resources
) -> None:
    """Neither by its cursors, watermarks, cached files nor index; its dimension is free."""
    client, model = service.client, "m-again"
    watermark = (await filled(service, model, 30, 4)).headers["x-watermark"]
    internal = {"internal_attributes": ["cost"]}
    assert (await client.patch(path_of(model), json=internal)).status_code == 200
    listing = path_of(model, "embeddings")
    cursor = (await client.get(listing, params={"limit": 2})).json()["next_cursor"]
    assert (await client.delete(path_of(model))).status_code == 202
    await deleted(worker, model)
    for reply in (
        await client.get(path_of(model)),
        await client.get(listing),
        await client.delete(path_of(model)),
        await client.patch(path_of(model), json=internal),
        await client.post(path_of(model, "search"), json={"vector": [1, 2, 3, 4]}),
    ):
        assert_problem(reply, 404, "not-found")
    cached = service.settings.serving.cache_dir
    async with asyncio.timeout(30):
        while list(cached.glob(f"**/{model}")):  # noqa: ASYNC110 - the disk has no event
            await asyncio.sleep(0.02)
    later = await filled(service, model, 10, 3)
    assert (await client.get(path_of(model))).json()["internal_attributes"] == []
    assert_problem(await client.get(listing, params={"cursor": cursor}), 400, "unreadable")
    items = (await client.get(listing, params={"limit": 100})).json()["items"]
    assert sorted(item["product_id"] for item in items) == sorted(f"p{n}" for n in range(10))
    assert {item["dimension"] for item in items} == {3}
    search = path_of(model, "search")
    asked = {"vector": vector(3, 3).tolist(), "k": 100}
    found = (await client.post(search, json=asked)).json()
    assert sorted(hit["product_id"] for hit in found["neighbors"]) == sorted(
        f"p{n}" for n in range(10)
    )
    assert_problem(
        await client.post(search, json={**asked, "min_watermark": watermark}),
        409,
        "not-yet-visible",
    )
    token = later.headers["x-watermark"]
    assert (await client.post(search, json={**asked, "min_watermark": token})).status_code == 200
    assert_problem(await client.post(search, json={"vector": [1, 2, 3, 4]}), 422, "invalid")
    builds = (await client.get(path_of(model, "builds"))).json()["items"]
    assert [build["build_id"] for build in builds] == [found["index"]["build_id"]]


async def test_a_late_write_leaves_no_trace_in_the_later_model(
    service: Service, worker: Resources
) -> None:
    """A row that a stale process left is not found, and is overwritten as if it were not there."""
    client, model = service.client, "m-late"
    await filled(service, model, 3, 4)
    earlier = await service.resources.models.get_model(model)
    await client.delete(path_of(model))
    await deleted(worker, model)
    rows = service.resources.embeddings
    for name in ("late", "later", "latest"):
        await rows.store_embedding(earlier, name, vector(1, 4).tobytes())
    await filled(service, model, 3, 2)
    assert_problem(await client.get(path_of(model, "embeddings", "late")), 404)
    assert_problem(await client.delete(path_of(model, "embeddings", "late")), 404)
    found = await client.post(path_of(model, "search"), json={"vector": [1, 2], "k": 50})
    assert len(found.json()["neighbors"]) == 3
    put = path_of(model, "embeddings", "late")
    assert (await client.put(put, json={"vector": [5, 6]})).status_code == 201
    put = path_of(model, "embeddings", "later")
    headers = {"idempotency-key": "late-1"}
    assert (await client.put(put, json={"vector": [5, 6]}, headers=headers)).status_code == 201
    batch = {"embeddings": [{"product_id": "latest", "vector": [5, 6]}]}
    path, headers = path_of(model, "embeddings:batch"), {"idempotency-key": "late-2"}
    assert (await client.post(path, json=batch, headers=headers)).status_code == 200
    for name in ("late", "later", "latest"):
        item = (await client.get(path_of(model, "embeddings", name))).json()
        assert item["vector"] == [5.0, 6.0]
