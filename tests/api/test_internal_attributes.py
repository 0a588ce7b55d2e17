"""Attributes that readers alone may ask by or get."""

from typing import Any

import httpx
import msgspec
import pytest

from api.app import create_app
from tests.api.conftest import MODEL
from tests.api.pool import Pool
from tests.api.serving import (
    assert_problem,
    caught_up,
    client_of,
    eventually,
    path_of,
    started,
    vector,
)
from tests.api.shop import Opened, Shop, until

Json = dict[str, Any]
BOOST = {"weight": 1, "min": 0, "max": 9}
COST = {"cost": {"$gte": 4}}

ASKED: list[tuple[Json, str]] = [
    ({"vector": vector(1).tolist(), "filter": COST}, "filter.cost"),
    ({"product_id": "p01", "filter": {"$not": {"$or": [COST]}}}, "filter.$not.$or[0].cost"),
    ({"vectors": [vector(1).tolist()], "filter": {"a": 1, **COST}}, "filter.cost"),
    ({"recommend": {"positive": ["p01"]}, "filter": {"$and": [{}, COST]}}, "filter.$and[1].cost"),
    ({"product_id": "p01", "group_by": "cost"}, "group_by"),
    ({"product_id": "p01", "boost": [{"attribute": "a", **BOOST}, {"attribute": "cost", **BOOST}]},
     "boost[1].attribute"),
    ({"vector": vector(1).tolist(), "fields": ["a", "cost"]}, "fields[1]"),
    ({"vectors": [vector(1).tolist()], "fields": ["cost"]}, "fields[0]"),
    ({"product_id": "p01", "group_by": "a", "fields": ["cost"]}, "fields[0]"),
]  # fmt: skip
"""Searches that use the attribute, and the place where each does."""
NEIGHBORS: list[tuple[Json, str]] = [
    ({"filter": msgspec.json.encode(COST).decode()}, "filter.cost"),
    ({"fields": "a,cost"}, "fields"),
]


async def answers(client: httpx.AsyncClient, model: str) -> list[httpx.Response]:
    """Those to all of them; neighbours by the router too, which a slash at the end goes to."""
    path = path_of(model, "products", "p01", "neighbors")
    return [
        *[await client.post(path_of(model, "search"), json=asked) for asked, _ in ASKED],
        *[await client.get(path, params=asked) for asked, _ in NEIGHBORS],
        *[await client.get(f"{path}/", params=asked) for asked, _ in NEIGHBORS],
    ]


def places(replies: list[httpx.Response]) -> list[str]:
    """The one place that each names."""
    found = [assert_problem(reply, 422, "invalid")["errors"] for reply in replies]
    assert {error["message"] for (error,) in found} == {"is not available to this caller"}
    return [error["field"] for (error,) in found]


async def set_internal(shop: Shop, *names: str) -> Json:
    """Makes attributes internal; the answer."""
    reply = await shop.client.patch(path_of(shop.model), json={"internal_attributes": names})
    assert reply.status_code == 200, reply.text
    answer: Json = reply.json()
    return answer


async def test_internal_attributes_are_for_readers(shop: Opened, pool: Pool) -> None:
    """Each form of search, neighbours and every field; other processes follow, both ways."""
    async with shop() as here:
        path = path_of(here.model, "embeddings", "p05")
        reply = await here.client.patch(path, json={"attributes": {"cost": 7, "a": 1}})
        await here.search(product_id="p01", min_watermark=reply.headers["x-watermark"])
        other = create_app(here.resources.settings, here.resources)
        async with (
            started(other),
            client_of(other, pool.token()) as caller,
            client_of(other, pool.token("readers")) as reader,
        ):
            await eventually(caller, here.model)
            assert await caught_up(caller, here.model, "p00") == 0
            before = await answers(caller, here.model)
            assert before[0].json()["neighbors"]
            assert [reply.status_code for reply in before] == [200] * len(before)
            plain = (await caller.get(path_of(here.model))).json()
            assert "internal_attributes" not in plain
            assert (await set_internal(here, "cost", "x", "cost"))["internal_attributes"] == [
                "cost",
                "x",
            ]

            async def hidden() -> bool:
                return (await answers(caller, here.model))[0].status_code == 422

            await until(hidden)
            wanted = [place for _, place in ASKED] + 2 * [place for _, place in NEIGHBORS]
            assert places(await answers(caller, here.model)) == wanted
            asked: Json = {"product_id": "p01", "filter": {"x": 1}}  # no product has it
            assert places([await caller.post(path_of(here.model, "search"), json=asked)]) == [
                "filter.x"
            ]
            assert (await caller.get(path_of(here.model))).json() == plain
            (listed,) = [
                item
                for item in (await caller.get("/models", params={"limit": 100})).json()["items"]
                if item["model_version"] == here.model
            ]
            assert listed == plain
            packed = msgspec.msgpack.encode({"product_id": "p01", "filter": COST})
            headers = {"content-type": "application/msgpack"}
            reply = await caller.post(
                path_of(here.model, "search"), content=packed, headers=headers
            )
            assert places([reply]) == ["filter.cost"]
            told = (await reader.get(path_of(here.model))).json()
            assert told == {**plain, "internal_attributes": ["cost", "x"]}
            same = await answers(reader, here.model)
            assert [reply.json() for reply in same] == [reply.json() for reply in before]
            assert (await set_internal(here))["internal_attributes"] == []

            async def shown() -> bool:
                return not await hidden()

            await until(shown)
            after = await answers(caller, here.model)
            assert [reply.json() for reply in after] == [reply.json() for reply in before]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "internal_attributes"),
        ({"internal_attributes": None}, "internal_attributes"),
        ({"internal_attributes": "cost"}, "internal_attributes"),
        ({"internal_attributes": ["a", 1]}, "internal_attributes[1]"),
        ({"internal_attributes": ["a", "b c"]}, "internal_attributes[1]"),
        ({"internal_attributes": [f"n{n}" for n in range(65)]}, "internal_attributes"),
        ({"internal_attributes": [], "metric": "l2"}, "metric"),
    ],
)
async def test_a_bad_change_of_a_model_is_named_with_its_place(
    client: httpx.AsyncClient, body: Json, field: str
) -> None:
    """And changes nothing."""
    reply = await client.patch(path_of(MODEL), json=body)
    (error,) = assert_problem(reply, 422, "invalid")["errors"]
    assert error["field"] == field
    assert (await client.get(path_of(MODEL))).json()["internal_attributes"] == []


async def test_only_operators_change_models_that_there_are(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    """Readers may not; an unknown one is not found, and none is made."""
    body = {"internal_attributes": ["cost"]}
    headers = {"authorization": f"Bearer {pool.token('readers')}"}
    assert_problem(await client.patch(path_of(MODEL), json=body, headers=headers), 403)
    assert_problem(await client.patch(path_of("m-unknown"), json=body), 404, "not-found")
    assert_problem(await client.get(path_of("m-unknown")), 404, "not-found")
