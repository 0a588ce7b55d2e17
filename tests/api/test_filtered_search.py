"""Filters over HTTP: in each form of search and among neighbours, fresh and exact."""

from typing import Any

import httpx
import msgspec
import numpy as np

from api.app import create_app
from tests.api.pool import Pool
from tests.api.serving import assert_problem, client_of, path_of, started, vector
from tests.api.shop import ROWS, Opened, Shop, until

Filter = dict[str, Any]


async def patch(shop: Shop, product_id: str, **attributes: Any) -> str:
    """Changes attributes of a product; the watermark."""
    path = path_of(shop.model, "embeddings", product_id)
    reply = await shop.client.patch(path, json={"attributes": attributes})
    assert reply.status_code == 200, reply.text
    token: str = reply.headers["x-watermark"]
    return token


async def matching(shop: Shop, condition: Filter, **asked: Any) -> set[str]:
    """All products that a filter finds."""
    return set(await shop.ids(vector(0), k=100, filter=condition, **asked))


async def stocked(shop: Shop) -> None:
    """Gives every third product a price, and waits until a search shows the last one."""
    for number in range(0, ROWS, 3):
        token = await patch(shop, f"p{number:02d}", price=number, tags=["a", f"t{number % 2}"])
        await matching(shop, {}, min_watermark=token)


async def test_each_form_of_search_takes_a_filter(shop: Opened) -> None:
    """And neighbours do: only what matches is found, nearest first, with the scores of before."""
    async with shop() as here:
        await stocked(here)
        condition = {"price": {"$gte": 6, "$lt": 20}, "tags": "t0"}
        wanted = {"p06", "p12", "p18"}
        assert await matching(here, condition) == wanted
        assert await matching(here, condition, exact=True) == wanted
        everything = await here.search(vector=vector(1).tolist(), k=100)
        some = await here.search(vector=vector(1).tolist(), k=100, filter=condition)
        assert some["neighbors"] == [
            hit for hit in everything["neighbors"] if hit["product_id"] in wanted
        ]
        assert some["index"] == {**everything["index"], "exact": True, "recall": 1.0}
        by_id = await here.search(product_id="p12", filter=condition)
        assert {hit["product_id"] for hit in by_id["neighbors"]} == wanted - {"p12"}
        several = await here.search(
            vectors=[vector(n).tolist() for n in (1, 2)], k=2, filter=condition, exclude=["p06"]
        )
        assert [{hit["product_id"] for hit in each} for each in several["results"]] == [
            {"p12", "p18"}
        ] * 2
        low = some["neighbors"][1]["score"]
        above = await here.search(vector=vector(1).tolist(), filter=condition, min_score=low)
        assert above["neighbors"] == some["neighbors"][:2]
        for product_id in ("p12", "p01"):
            path = path_of(here.model, "products", product_id, "neighbors")
            text = msgspec.json.encode(condition).decode()
            reply = await here.client.get(path, params={"filter": text, "k": 2})
            assert reply.status_code == 200, reply.text
            same = await here.search(product_id=product_id, k=2, filter=condition)
            assert reply.json() == same
        assert await here.ids(vector(0), filter={"price": {"$in": []}}) == []
        assert len(await here.ids(vector(0), k=100, filter={})) == ROWS
        assert len(await matching(here, {"price": {"$ne": 0}})) == ROWS - 1


async def test_a_filter_in_msgpack_is_the_same(shop: Opened) -> None:
    """With the vector as bytes."""
    async with shop() as here:
        await stocked(here)
        body = {
            "vector": vector(1).astype("<f4").tobytes(),
            "filter": {"$or": [{"price": 3}, {"price": {"$gt": 26.5}}]},
        }
        reply = await here.client.post(
            path_of(here.model, "search"),
            content=msgspec.msgpack.encode(body),
            headers={"content-type": "application/msgpack"},
        )
        found = {hit["product_id"] for hit in reply.json()["neighbors"]}
        assert found == {"p03", "p27"}


async def test_a_changed_attribute_is_filtered_by_at_once(shop: Opened) -> None:
    """By its watermark, and soon without one; it is no changed vector."""
    async with shop() as here:
        token = await patch(here, "p05", price=1)
        assert await matching(here, {"price": 1}, min_watermark=token) == {"p05"}
        token = await patch(here, "p05", price=2, brand="acme")
        assert await matching(here, {"price": 1}, min_watermark=token) == set()
        assert await matching(here, {"price": 2, "brand": "acme"}) == {"p05"}
        await patch(here, "p05", price=3)

        async def shows() -> bool:
            return await matching(here, {"price": 3}) == {"p05"}

        await until(shows)
        answer = await here.search(vector=vector(0).tolist(), filter={"price": 3})
        assert answer["index"]["fresh"] == 0


async def test_a_write_with_attributes_is_found_with_both(shop: Opened) -> None:
    """A new product by its vector and its attributes; a deleted one by none."""
    async with shop() as here:
        path = path_of(here.model, "embeddings", "new")
        near = (vector(3) + np.float32(0.01)).astype(np.float32)
        body = {"vector": near.tolist(), "attributes": {"price": 7}}
        token = (await here.client.put(path, json=body)).headers["x-watermark"]
        assert await matching(here, {"price": 7}, min_watermark=token) == {"new"}
        token = await here.put("new", vector(9))
        assert await matching(here, {"price": 7}, min_watermark=token) == {"new"}
        token = await here.delete("new")
        assert await matching(here, {"price": 7}, min_watermark=token) == set()
        token = await here.put("new", vector(9))
        assert await matching(here, {"price": 7}, min_watermark=token) == set()
        assert "new" in await matching(here, {"price": {"$exists": False}}, min_watermark=token)
        entries = [
            {"product_id": f"b{n}", "vector": vector(90 + n).tolist(), "attributes": {"n": n}}
            for n in range(3)
        ]
        reply = await here.client.post(
            f"/models/{here.model}/embeddings:batch", json={"embeddings": entries}
        )
        token = reply.headers["x-watermark"]
        assert await matching(here, {"n": {"$gte": 1}}, min_watermark=token) == {"b1", "b2"}


async def test_a_build_keeps_what_is_filtered_by(shop: Opened) -> None:
    """With the next version in use the same products match."""
    async with shop(poll_s=0.2) as here:
        await stocked(here)
        before = await matching(here, {"price": {"$gt": 10}})
        await here.build(force=True)
        assert await matching(here, {"price": {"$gt": 10}}) == before
        token = await patch(here, "p01", price=11)
        assert await matching(here, {"price": 11}, min_watermark=token) == {"p01"}


async def test_another_process_filters_by_what_this_one_wrote(
    shop: Opened, pool: Pool, tmp_path: Any
) -> None:
    """Soon, and at once with the watermark."""
    async with shop() as here:
        settings = msgspec.structs.replace(
            here.resources.settings,
            serving=msgspec.structs.replace(
                here.resources.settings.serving, cache_dir=tmp_path / "other"
            ),
        )
        app = create_app(settings, here.resources)
        async with started(app), client_of(app, pool.token()) as client:
            body = {"vector": vector(0).tolist(), "filter": {"price": {"$lt": 5}}}

            async def found(**more: Any) -> set[str] | None:
                reply = await client.post(path_of(here.model, "search"), json={**body, **more})
                if reply.status_code != 200:
                    return None
                return {hit["product_id"] for hit in reply.json()["neighbors"]}

            async def answers() -> bool:
                return await found() == set()

            await until(answers)
            token = await patch(here, "p08", price=4)
            assert await found(min_watermark=token) == {"p08"}
            await patch(here, "p09", price=3)

            async def both() -> bool:
                return await found() == {"p08", "p09"}

            await until(both)


_MISTAKES: list[tuple[Any, str, str]] = [
    (None, "filter", "takes an object, not null"),
    ([], "filter", "takes an object"),
    ({"$and": []}, "filter.$and", "at least one filter"),
    ({"$or": [{"a": 1}, {"b": {"$gt": "x"}}]}, "filter.$or[1].b.$gt", "takes a number"),
    ({"a": {"$like": "x"}}, "filter.a", "is no operator"),
    ({"a b": 1}, "filter", "has the name 'a b'"),
    ({"a": "x" * 257}, "filter.a", "has 257 characters"),
    ({"a": {"$in": [1] * 1001}}, "filter.a.$in[1000]", "one value too many"),
    ({"a": {"$exists": 1}}, "filter.a.$exists", "takes true or false"),
]


async def test_a_mistake_is_named_with_its_place(shop: Opened) -> None:
    """In a body and in the query of neighbours, whether there is such a model version or not."""
    async with shop() as here:
        for condition, field, message in _MISTAKES:
            body = {"vector": vector(0).tolist(), "filter": condition}
            text = msgspec.json.encode(condition).decode()
            for reply in (
                await here.client.post(path_of(here.model, "search"), json=body),
                await here.client.post(path_of("m-none", "search"), json=body),
                await neighbors(here, text),
            ):
                (error,) = assert_problem(reply, 422, "invalid")["errors"]
                assert error["field"] == field
                assert message in error["message"]


async def neighbors(shop: Shop, text: str) -> httpx.Response:
    """Asks for neighbours with a filter as text."""
    path = path_of(shop.model, "products", "p00", "neighbors")
    return await shop.client.get(path, params={"filter": text})


async def test_what_cannot_be_read_is_refused(shop: Opened) -> None:
    """Filters that are cut short, or nest beyond all limits."""
    async with shop() as here:
        for text in ("", "{", '{"a": ' + "[" * 3000 + "]" * 3000 + "}", '{"a": 1e400}', "\ud800"):
            if text.isprintable():
                assert_problem(await neighbors(here, text), 422, "invalid")
        path = path_of(here.model, "search")
        numbers = msgspec.json.encode(vector(0).tolist()).decode()
        deep = '{"$not": ' * 5000 + "{}" + "}" * 5000
        for content, status in (
            (f'{{"vector": {numbers}, "filter": {{"a": }}}}', 400),
            (f'{{"vector": {numbers}, "filter": {deep}}}', 400),
            (f'{{"vector": {numbers}, "filter": {{"a": 1e400}}}}', 422),
            (f'{{"vector": {numbers}, "filter": {{"a": [{"1," * 1_000_000}1]}}}}', 422),
        ):
            assert_problem(await here.client.post(path, content=content), status)
        assert len(await here.ids(vector(0))) == 10
