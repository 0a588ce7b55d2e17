"""Search and neighbours, over the application as a whole."""

import asyncio
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from api.app import create_app
from tests.api.conftest import MODEL, ROWS, Service
from tests.api.serving import (
    IDS,
    assert_problem,
    build_here,
    caught_up,
    client_of,
    eventually,
    path_of,
    started,
    vector,
)

SEARCH = f"/models/{MODEL}/search"


def _nearest(query: int, count: int) -> list[str]:
    ids = [*IDS, *(f"p-{n}" for n in range(ROWS - len(IDS)))]
    rows = np.stack([vector(row) for row in range(ROWS)]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    asked = vector(query).astype(np.float64)
    order = np.argsort(-(rows @ asked))
    return [ids[row] for row in order[:count]]


async def test_a_search_by_vector_finds_what_numpy_finds(client: httpx.AsyncClient) -> None:
    """The ids are those of an exact search, nearest first, with what answered beside them."""
    reply = await client.post(SEARCH, json={"vector": vector(1000).tolist(), "k": 7})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert [n["product_id"] for n in body["neighbors"]] == _nearest(1000, 7)
    scores = [n["score"] for n in body["neighbors"]]
    assert scores == sorted(scores, reverse=True)
    assert set(body["index"]) == {"build_id", "built_at", "recall", "exact", "watermark", "fresh"}
    assert body["index"]["fresh"] in {None, 0}  # null until what changed since is read


async def test_a_body_labelled_as_a_form_is_json_all_the_same(client: httpx.AsyncClient) -> None:
    """What `curl -d` sends works as it stands."""
    reply = await client.post(
        SEARCH,
        content=b'{"product_id": "plain"}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert reply.status_code == 200


async def test_msgpack_in_and_out_says_the_same_as_json(client: httpx.AsyncClient) -> None:
    """A vector of float32 bytes finds what its numbers find."""
    asked = vector(7)
    packed = msgspec.msgpack.encode({"vector": asked.tobytes(), "k": 5})
    reply = await client.post(
        SEARCH,
        content=packed,
        headers={"content-type": "application/msgpack", "accept": "application/msgpack"},
    )
    assert reply.headers["content-type"] == "application/msgpack"
    plain = await client.post(SEARCH, json={"vector": asked.tolist(), "k": 5})
    assert msgspec.msgpack.decode(reply.content) == plain.json()


async def test_several_vectors_are_answered_in_their_order(client: httpx.AsyncClient) -> None:
    """`results` has one list a vector, in JSON and in msgpack."""
    vectors = [vector(seed) for seed in (1, 2, 3)]
    reply = await client.post(SEARCH, json={"vectors": [v.tolist() for v in vectors], "k": 3})
    results = reply.json()["results"]
    ids = [[n["product_id"] for n in near] for near in results]
    assert ids == [_nearest(seed, 3) for seed in (1, 2, 3)]
    packed = msgspec.msgpack.encode({"vectors": [v.tobytes() for v in vectors], "k": 3})
    reply = await client.post(
        SEARCH, content=packed, headers={"content-type": "application/msgpack"}
    )
    assert reply.json()["results"] == results


async def test_a_product_is_not_among_its_own_results(client: httpx.AsyncClient) -> None:
    """Search by product id, and neighbours, leave the product out."""
    for product_id in IDS:
        reply = await client.post(SEARCH, json={"product_id": product_id, "k": 5})
        assert reply.status_code == 200, reply.text
        searched = [n["product_id"] for n in reply.json()["neighbors"]]
        assert product_id not in searched
        reply = await client.get(path_of(MODEL, "products", product_id, "neighbors"))
        assert reply.status_code == 200, reply.text
        near = [n["product_id"] for n in reply.json()["neighbors"]]
        assert len(near) == 10
        assert product_id not in near
        assert near[:5] == searched


async def test_neighbors_come_from_the_matrix_up_to_its_k(client: httpx.AsyncClient) -> None:
    """With k up to the matrix's 5, and beyond it, the same order is found."""
    path = path_of(MODEL, "products", "plain", "neighbors")
    few = (await client.get(path, params={"k": 5})).json()
    more = (await client.get(path, params={"k": 6})).json()
    assert few["neighbors"] == more["neighbors"][:5]
    assert few["index"]["exact"] is True


async def test_k_above_the_catalogue_gives_all_of_it(client: httpx.AsyncClient) -> None:
    """There is no padding and no error."""
    reply = await client.post(SEARCH, json={"vector": vector(5).tolist(), "k": 1000})
    assert len(reply.json()["neighbors"]) == ROWS
    reply = await client.get(path_of(MODEL, "products", "plain", "neighbors"), params={"k": 1000})
    assert len(reply.json()["neighbors"]) == ROWS - 1


async def test_options_narrow_a_search(client: httpx.AsyncClient) -> None:
    """`exclude`, `min_score` and `exact` do what they say."""
    asked: dict[str, Any] = {"vector": vector(5).tolist(), "k": 10}
    near = (await client.post(SEARCH, json=asked)).json()["neighbors"]
    gone = [near[0]["product_id"], "no such product"]
    without = (await client.post(SEARCH, json=asked | {"exclude": gone})).json()["neighbors"]
    assert without[:9] == near[1:]
    least = near[3]["score"]
    kept = (await client.post(SEARCH, json=asked | {"min_score": least})).json()["neighbors"]
    assert kept == near[:4]
    exact = (await client.post(SEARCH, json=asked | {"exact": True})).json()
    assert exact["neighbors"] == near
    assert exact["index"]["exact"] is True
    assert exact["index"]["recall"] == 1


async def test_both_paths_answer_byte_for_byte_the_same(service: Service) -> None:
    """The fast path answers what the router's handlers answer."""
    slow = create_app(service.settings, service.resources, use_fast_path=False)
    token = service.pool.token()
    bodies: list[bytes] = [
        msgspec.json.encode({"vector": vector(3).tolist(), "k": 4}),
        msgspec.json.encode({"vectors": [vector(3).tolist()], "k": 4}),
        b'{"product_id": "with/slash"}',
        b'{"product_id": "nothing"}',
        b"{",
        b'{"k": 0}',
        b'{"vector": [1, true]}',
    ]
    async with (
        started(slow),
        client_of(slow, token) as through,
        client_of(service.app, token) as by,
    ):
        await eventually(through, MODEL)
        assert [await caught_up(c, MODEL, "plain") for c in (through, by)] == [0, 0]
        for path in (SEARCH, "/models/none/search"):
            for body in bodies:
                one, other = [await c.post(path, content=body) for c in (through, by)]
                assert (one.status_code, one.content) == (other.status_code, other.content)
                assert _headers(one) == _headers(other)
        for product_id in (*IDS, "nothing", "x" * 600):
            for query in ("", "?k=3", "?k=0", "?k=x"):
                path = path_of(MODEL, "products", product_id, "neighbors") + query
                one, other = [await c.get(path) for c in (through, by)]
                assert (one.status_code, one.content) == (other.status_code, other.content)
                assert _headers(one) == _headers(other)


def _headers(reply: httpx.Response) -> set[tuple[str, str]]:
    return {pair for pair in reply.headers.items() if pair[0] != "x-request-id"}


async def test_a_model_without_a_build_is_told_from_one_that_is_not_there(
    client: httpx.AsyncClient,
) -> None:
    """Before its first build a model version is a conflict; an unknown one is not found."""
    await client.put(path_of("m-unbuilt", "embeddings", "a"), json={"vector": [1, 0]})
    for path in (
        path_of("m-unbuilt", "products", "a", "neighbors"),
        path_of("m-unbuilt", "matrix"),
    ):
        assert_problem(await client.get(path), 409, "no-index")
    reply = await client.post(path_of("m-unbuilt", "search"), json={"vector": [1, 0]})
    assert_problem(reply, 409, "no-index")
    reply = await client.post(path_of("m-unknown", "search"), json={"vector": [1, 0]})
    assert_problem(reply, 404, "not-found")


async def test_a_new_build_is_seen_without_a_restart(service: Service) -> None:
    """A published build answers within 2 s, and a search waits for the write it asks to see."""
    client, model = service.client, "m-swap"
    first = await client.put(path_of(model, "embeddings", "a"), json={"vector": [1, 0]})
    await client.put(path_of(model, "embeddings", "b"), json={"vector": [0, 1]})
    build = (await client.post(path_of(model, "builds"), json={})).json()
    await build_here(service.resources, build["build_id"])
    async with asyncio.timeout(2):
        while True:
            reply = await client.post(path_of(model, "search"), json={"vector": [1, 0.1]})
            if reply.status_code == 200:
                break
            await asyncio.sleep(0.05)
    assert [n["product_id"] for n in reply.json()["neighbors"]] == ["a", "b"]
    assert reply.json()["index"]["build_id"] == build["build_id"]
    # A build's watermark lies a minute before its pull: whether this write is in it is looked up.
    asked = {"vector": [1, 0], "min_watermark": first.headers["x-watermark"]}
    reply = await client.post(path_of(model, "search"), json=asked)
    assert reply.json()["neighbors"][0]["product_id"] == "a"


@pytest.mark.parametrize("token", ["nonsense", "", "A" * 2000, "gaE="])
async def test_a_watermark_of_ones_own_making_cannot_be_read(
    client: httpx.AsyncClient, token: str
) -> None:
    """It is a 400, an empty one too: who lost a token should not think that it was honoured."""
    reply = await client.post(SEARCH, json={"product_id": "plain", "min_watermark": token})
    assert_problem(reply, 400, "unreadable")
