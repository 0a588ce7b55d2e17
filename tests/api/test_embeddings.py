"""Embeddings over HTTP: write, read, delete, page through."""

from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from tests.api.conftest import MODEL, ROWS, Service
from tests.api.serving import IDS, assert_problem, client_of, path_of, vector

OTHER = "m-rows"


@pytest.mark.parametrize("product_id", IDS)
async def test_an_id_of_any_characters_makes_the_round_trip(
    service: Service, client: httpx.AsyncClient, product_id: str
) -> None:
    """It is stored, read, listed and deleted under the name it was given."""
    path = path_of(OTHER, "embeddings", product_id)
    sent = vector(1).tolist()
    reply = await client.put(path, json={"vector": sent})
    assert reply.status_code == 201, reply.text
    assert reply.json() == {
        "product_id": product_id,
        "dimension": 8,
        "updated_at": reply.json()["updated_at"],
    }
    presented = service.resources.watermarks.decode(reply.headers["x-watermark"])
    assert presented.watermark.product_id == product_id
    assert (await client.put(path, json={"vector": sent})).status_code == 200
    got = (await client.get(path)).json()
    assert got["product_id"] == product_id
    assert np.asarray(got["vector"], np.float32).tolist() == sent
    listed = (await client.get(path_of(OTHER, "embeddings"), params={"limit": 100})).json()
    assert product_id in [item["product_id"] for item in listed["items"]]
    gone = await client.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert gone.headers["x-watermark"]
    for again in (await client.delete(path), await client.get(path)):
        assert_problem(again, 404, "not-found")
    assert (await client.put(path, json={"vector": sent})).status_code == 201
    assert (await client.delete(path)).status_code == 204


async def test_decimals_come_back_as_they_were_sent(client: httpx.AsyncClient) -> None:
    """0.1 is 0.1, and not what float64 makes of float32's 0.1."""
    path = path_of("m-decimals", "embeddings", "a")
    sent = [0.1, -2.5, 3, 1e-7, 123456.7]
    await client.put(path + "?metric=l2", json={"vector": sent})
    assert (await client.get(path)).json()["vector"] == sent


async def test_msgpack_carries_vectors_as_bytes(client: httpx.AsyncClient) -> None:
    """Both ways, one by one and in a batch and a page."""
    model = "m-packed"
    sent = vector(3)
    headers = {"content-type": "application/msgpack", "accept": "application/msgpack"}
    body = msgspec.msgpack.encode({"vector": sent.tobytes()})
    reply = await client.put(path_of(model, "embeddings", "a"), content=body, headers=headers)
    assert reply.status_code == 201, reply.text
    entries = [
        {"product_id": "b", "vector": sent.tobytes()},
        {"product_id": "c", "vector": sent.tolist()},
    ]
    body = msgspec.msgpack.encode({"embeddings": entries})
    reply = await client.post(f"/models/{model}/embeddings:batch", content=body, headers=headers)
    assert msgspec.msgpack.decode(reply.content) == {"stored": 2}
    for product_id in "abc":
        reply = await client.get(path_of(model, "embeddings", product_id), headers=headers)
        assert msgspec.msgpack.decode(reply.content)["vector"] == sent.tobytes()
    page = await client.get(path_of(model, "embeddings"), headers=headers)
    items = msgspec.msgpack.decode(page.content)["items"]
    assert [item["vector"] for item in items] == [sent.tobytes()] * 3


async def test_a_list_is_paged_to_its_end(client: httpx.AsyncClient) -> None:
    """Every row comes once, with its vector or without."""
    path = path_of(MODEL, "embeddings")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        parameters: dict[str, Any] = {"limit": 7, "vectors": "false"}
        if cursor:
            parameters["cursor"] = cursor
        page = (await client.get(path, params=parameters)).json()
        assert all("vector" not in item for item in page["items"])
        seen += [item["product_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == ROWS


async def test_a_cursor_is_good_for_its_caller_and_list_alone(service: Service) -> None:
    """For anyone else, and for any other list, it is a 400."""
    path = path_of(MODEL, "embeddings")
    page = (await service.client.get(path, params={"limit": 1})).json()
    cursor = {"cursor": page["next_cursor"]}
    assert (await service.client.get(path, params=cursor)).status_code == 200
    other_list = await service.client.get(path, params=cursor | {"vectors": "false"})
    other_route = await service.client.get(path_of(MODEL, "builds"), params=cursor)
    changed = await service.client.get(path, params={"cursor": "A" + page["next_cursor"]})
    for reply in (other_list, other_route, changed):
        assert_problem(reply, 400, "unreadable")
    token = service.pool.token("operators", sub="somebody-else")
    async with client_of(service.app, token) as other:
        assert_problem(await other.get(path, params=cursor), 400, "unreadable")


async def test_the_colon_of_a_batch_may_be_escaped(client: httpx.AsyncClient) -> None:
    """`embeddings%3Abatch` is `embeddings:batch`."""
    body = {"embeddings": [{"product_id": "x", "vector": [1, 2]}]}
    reply = await client.post("/models/m-colon/embeddings%3Abatch", json=body)
    assert reply.json() == {"stored": 1}


async def test_a_large_batch_is_read_in_a_thread_and_stored_whole(
    client: httpx.AsyncClient,
) -> None:
    """One of over 256 KiB is no different from a small one; nor is a search of that size."""
    entries = [{"product_id": f"big-{n}", "vector": vector(n, 1024).tolist()} for n in range(60)]
    body = msgspec.json.encode({"embeddings": entries})
    assert len(body) > 512 * 1024
    reply = await client.post("/models/m-big/embeddings:batch", content=body)
    assert reply.json() == {"stored": 60}
    entries[7]["vector"] = [0.0] * 1024
    reply = await client.post("/models/m-big/embeddings:batch", json={"embeddings": entries})
    problem = assert_problem(reply, 422, "invalid")
    assert [error["field"] for error in problem["errors"]] == ["embeddings[7].vector"]
    many = {"vectors": [vector(n, 1024).tolist() for n in range(60)], "k": 1}
    assert_problem(await client.post("/models/m-big/search", json=many), 409, "no-index")
