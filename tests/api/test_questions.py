"""Examples, groups, variety, boosts and attributes in the answer, over HTTP."""

from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from core.vectors.arrays import Floats, prepare
from tests.api.conftest import MODEL
from tests.api.pool import Pool
from tests.api.serving import assert_problem, path_of, vector
from tests.api.shop import ROWS, Opened, Shop

Json = dict[str, Any]


async def stocked(shop: Shop) -> None:
    """Gives each product a model, a stock and a title, and puts a fresh one beside them."""
    token = ""
    for number in range(ROWS):
        attributes = {"model": f"m{number % 4}", "stock": number, "title": f"Product {number}"}
        path = path_of(shop.model, "embeddings", f"p{number:02d}")
        reply = await shop.client.patch(path, json={"attributes": attributes})
        token = reply.headers["x-watermark"]
        await shop.search(vector=vector(0).tolist(), min_watermark=token)
    near = (vector(3) + np.float32(0.01)).astype(np.float32)
    body = {"vector": near.tolist(), "attributes": {"model": "new", "stock": 5}}
    reply = await shop.client.put(path_of(shop.model, "embeddings", "fresh"), json=body)
    await shop.search(vector=vector(0).tolist(), min_watermark=reply.headers["x-watermark"])


def names(answer: Json) -> list[str]:
    """The products of an answer."""
    return [hit["product_id"] for hit in answer["neighbors"]]


async def test_one_example_is_a_search_by_id_and_several_are_like_all_of_them(shop: Opened) -> None:
    """Ids and vectors, with a filter, in both strategies; no example is among the results."""
    async with shop() as here:
        await stocked(here)
        by_id = await here.search(product_id="p03", k=5)
        assert names(by_id)[0] == "fresh"
        for strategy in ("average", "best"):
            asked: Json = {"positive": ["p03"], "strategy": strategy}
            assert await here.search(recommend=asked, k=5) == by_id
        mean = prepare(np.stack([vector(3), vector(8)]), "cosine").mean(axis=0, dtype=np.float64)
        by_mean = await here.search(
            vector=mean.astype(np.float32).tolist(), k=7, exclude=["p03"], exact=True
        )
        average = {"positive": ["p03", vector(8).tolist()]}
        assert await here.search(recommend=average, k=7, exact=True) == by_mean
        best = await here.search(
            recommend={"positive": ["p03", "p08"], "negative": ["p09"], "strategy": "best"},
            k=100,
            filter={"stock": {"$gte": 5}},
        )
        wanted = {f"p{number:02d}" for number in range(5, ROWS)} - {"p08", "p09"} | {"fresh"}
        assert set(names(best)) == wanted
        assert names(best)[0] == "fresh"


async def test_groups_are_as_many_as_asked_for_though_one_crowds(shop: Opened) -> None:
    """30 copies of one model do not hide the others; each group has its best products."""
    async with shop() as here:
        await stocked(here)
        entries = [
            {
                "product_id": f"copy{number:02d}",
                "vector": (vector(1) * (1 + number)).tolist(),
                "attributes": {"model": "crowd"},
            }
            for number in range(30)
        ]
        reply = await here.client.post(
            f"/models/{here.model}/embeddings:batch", json={"embeddings": entries}
        )
        token = reply.headers["x-watermark"]
        plain = await here.search(vector=vector(1).tolist(), k=20, min_watermark=token)
        assert {name[:4] for name in names(plain)} <= {"copy", "p01"}
        answer = await here.search(
            vector=vector(1).tolist(), k=4, group_by="model", group_size=2, fields=["title"]
        )
        assert len(answer["groups"]) == 4
        assert {"crowd", "m1"} == {group["value"] for group in answer["groups"][:2]}
        everything = await here.search(vector=vector(1).tolist(), k=100, fields=["model", "title"])
        order: dict[str, list[Json]] = {}
        for hit in everything["neighbors"]:
            model = hit["attributes"].pop("model")
            order.setdefault(model, []).append(hit)
        assert (
            answer["groups"]
            == [{"value": value, "neighbors": members[:2]} for value, members in order.items()][:4]
        )
        assert answer["index"] == {**everything["index"], "exact": True}
        some = await here.search(
            vector=vector(1).tolist(), k=10, group_by="model", filter={"model": {"$ne": "crowd"}}
        )
        assert [group["value"] for group in some["groups"]] == [
            value for value in order if value != "crowd"
        ]
        listed = {"attributes": {"model": ["crowd", "m1"]}}  # which is no one value of them
        reply = await here.client.patch(path_of(here.model, "embeddings", "copy00"), json=listed)
        again = await here.search(
            vector=vector(1).tolist(),
            k=100,
            group_by="model",
            group_size=10,
            filter={"model": "crowd"},
            min_watermark=reply.headers["x-watermark"],
        )
        (crowd,) = again["groups"]
        assert (crowd["value"], len(crowd["neighbors"])) == ("crowd", 10)
        assert "copy00" not in names(crowd)
        nothing = await here.search(vector=vector(1).tolist(), group_by="none")
        assert nothing["groups"] == []


async def test_a_boost_adds_to_the_similarity_that_stands_beside_it(shop: Opened) -> None:
    """Weight 0 is the plain answer; a changed attribute counts at once."""
    async with shop() as here:
        await stocked(here)
        query = vector(1).tolist()
        everything = await here.search(vector=query, k=100)
        boost = {"attribute": "stock", "weight": 0.0, "min": 0, "max": 20}
        plain = await here.search(vector=query, k=100, boost=[boost])
        assert plain == {
            **everything,
            "neighbors": [{**hit, "similarity": hit["score"]} for hit in everything["neighbors"]],
        }
        boosted = await here.search(
            vector=query, k=5, boost=[{**boost, "weight": 0.5}], fields=["stock"]
        )
        similar = {hit["product_id"]: hit["score"] for hit in everything["neighbors"]}
        for hit in boosted["neighbors"]:
            gain = 0.5 * min(1.0, hit["attributes"]["stock"] / 20)
            assert hit["similarity"] == similar[hit["product_id"]]
            assert hit["score"] == pytest.approx(hit["similarity"] + gain)
        best = sorted(
            similar,
            key=lambda name: (
                -similar[name] - 0.5 * min(1.0, (5 if name == "fresh" else int(name[1:])) / 20)
            ),
        )
        assert names(boosted) == best[:5]
        last = names(everything)[-1]
        reply = await here.client.patch(
            path_of(here.model, "embeddings", last), json={"attributes": {"promoted": 1}}
        )
        token = reply.headers["x-watermark"]
        promoted = [{"attribute": "promoted", "weight": 9, "min": 0, "max": 1}]
        first = await here.search(vector=query, k=1, boost=promoted, min_watermark=token)
        assert names(first) == [last]


async def test_diversity_spreads_the_results(shop: Opened) -> None:
    """0 is the plain answer; with more of it copies make room for others, scores as they are."""
    async with shop() as here:
        near = (vector(1) * np.float32(2)).astype(np.float32)
        token = ""
        for number in range(5):
            token = await here.put(f"copy{number}", near)
        query = vector(1).tolist()
        plain = await here.search(vector=query, k=6, min_watermark=token)
        assert await here.search(vector=query, k=6, diversity=0) == plain
        assert await here.search(vector=query, k=6, diversity=0.0, boost=[]) == {
            **plain,
            "neighbors": [{**hit, "similarity": hit["score"]} for hit in plain["neighbors"]],
        }
        various = await here.search(vector=query, k=6, diversity=0.7)
        assert sum(name.startswith("copy") or name == "p01" for name in names(various)) == 1
        similar = {
            hit["product_id"]: hit["score"]
            for hit in (await here.search(vector=query, k=100))["neighbors"]
        }
        assert all(similar[hit["product_id"]] == hit["score"] for hit in various["neighbors"])


async def test_attributes_are_given_with_what_is_found(shop: Opened) -> None:
    """In each form of search and with neighbours; only the ones named, where they are there."""
    async with shop() as here:
        await stocked(here)
        answer = await here.search(product_id="p03", k=3, fields=["title", "stock", "none"])
        assert answer["neighbors"][0]["attributes"] == {"stock": 5}
        for hit in answer["neighbors"][1:]:
            number = int(hit["product_id"][1:])
            assert hit["attributes"] == {"title": f"Product {number}", "stock": number}
        path = path_of(here.model, "products", "p03", "neighbors")
        reply = await here.client.get(path, params={"k": 3, "fields": "title,stock,none"})
        assert reply.json()["neighbors"] == answer["neighbors"]
        reply = await here.client.get(
            path, params={"k": 2, "fields": "stock", "filter": '{"stock": {"$lt": 2}}'}
        )
        assert [hit["attributes"] for hit in reply.json()["neighbors"]] == [
            {"stock": int(hit["product_id"][1:])} for hit in reply.json()["neighbors"]
        ]
        several = await here.search(
            vectors=[vector(1).tolist(), vector(2).tolist()], k=2, fields=["stock"]
        )
        assert [hit["attributes"]["stock"] for line in several["results"] for hit in line][::2] == [
            1,
            2,
        ]
        plain = await here.search(product_id="p03", k=3)
        assert [set(hit) for hit in plain["neighbors"]] == [{"product_id", "score"}] * 3


async def test_examples_in_msgpack_are_the_same(shop: Opened) -> None:
    """Ids of each length as text, vectors as bytes and as numbers."""
    async with shop() as here:
        long = "x" * 300
        token = await here.put(long, vector(50))
        packed: Floats = vector(4).astype("<f4")
        asked: Json = {"positive": ["p01", long, packed.tolist()], "negative": []}
        expected = await here.search(recommend=asked, min_watermark=token)
        asked["positive"][2] = packed.tobytes()
        reply = await here.client.post(
            path_of(here.model, "search"),
            content=msgspec.msgpack.encode({"recommend": asked}),
            headers={"content-type": "application/msgpack"},
        )
        assert reply.json() == expected


BOOST = {"attribute": "a", "weight": 1, "min": 0, "max": 1}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"recommend": {"positive": []}}, "recommend.positive"),
        ({"recommend": {"positive": ["plain"], "strategy": "most"}}, "recommend.strategy"),
        ({"recommend": {"positive": ["plain", ""]}}, "recommend.positive[1]"),
        ({"recommend": {"positive": ["plain"], "negative": [[1, 2]]}}, "recommend.negative[0]"),
        ({"recommend": {"positive": ["plain"], "negative": [7]}}, "recommend.negative[0]"),
        ({"recommend": {"positive": [[0.0] * 8]}}, "recommend.positive[0]"),
        (
            {"recommend": {"positive": ["plain"] * 60, "negative": ["p-1"] * 41}},
            "recommend.negative",
        ),
        ({"recommend": {"positive": ["plain"] * 11, "strategy": "best"}, "k": 1000}, "k"),
        ({"recommend": {"positive": [[1] * 8, [-1] * 8]}}, "recommend"),
        ({"recommend": {"positive": ["plain"]}, "product_id": "plain"}, "recommend"),
        ({"product_id": "plain", "group_by": "a b"}, "group_by"),
        ({"product_id": "plain", "group_by": "a", "group_size": 11}, "group_size"),
        ({"product_id": "plain", "group_size": 2}, "group_size"),
        ({"product_id": "plain", "group_by": "a", "diversity": 0.5}, "diversity"),
        ({"product_id": "plain", "diversity": 1.5}, "diversity"),
        ({"product_id": "plain", "boost": [BOOST] * 9}, "boost"),
        ({"product_id": "plain", "boost": [{**BOOST, "max": 0}]}, "boost[0].max"),
        (
            {"product_id": "plain", "boost": [BOOST, {**BOOST, "attribute": ""}]},
            "boost[1].attribute",
        ),
        ({"product_id": "plain", "boost": [{**BOOST, "weight": 1e19}]}, "boost[0].weight"),
        ({"product_id": "plain", "fields": ["a", "b c"]}, "fields[1]"),
        ({"product_id": "plain", "fields": ["a"] * 65}, "fields"),
        ({"vectors": [[1] * 8], "boost": [BOOST]}, "boost"),
        ({"vectors": [[1] * 8], "diversity": 0.1}, "diversity"),
        ({"vectors": [[1] * 8], "group_by": "a"}, "group_by"),
    ],
)
async def test_a_mistake_is_named_with_its_place(
    client: httpx.AsyncClient, asked: Json, field: str
) -> None:
    """Each field alone, and fields that do not go together."""
    reply = await client.post(path_of(MODEL, "search"), json=asked)
    errors = assert_problem(reply, 422, "invalid")["errors"]
    assert [error["field"] for error in errors] == [field]


async def test_an_example_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    """And a bad parameter of neighbours is a 422."""
    body = {"recommend": {"positive": ["p-none"]}}
    assert_problem(await client.post(path_of(MODEL, "search"), json=body), 404)
    for fields in ("", "a,,b", "a b", ",".join(["a"] * 65)):
        path = path_of(MODEL, "products", "plain", "neighbors")
        reply = await client.get(path, params={"fields": fields})
        (error,) = assert_problem(reply, 422, "invalid")["errors"]
        assert error["field"] == "fields"


async def test_operators_are_told_how_an_answer_was_found(shop: Opened, pool: Pool) -> None:
    """Plan, numbers of products, time of each step; the answer is the same as without."""
    async with shop() as here:
        await stocked(here)
        asked: Json = {"product_id": "p03", "k": 4, "filter": {"stock": {"$lt": 20}}}
        plain = await here.search(**asked, fields=["stock"])
        answer = await here.search(**asked, fields=["stock"], explain=True)
        told = answer.pop("explain")
        assert answer == plain
        assert (told["rows"], told["matched"]) == (ROWS + 1, 21)
        (search,) = told["searches"]
        assert (search["plan"], search["rows"], search["k"]) == ("scan", 21, 4)
        assert (search["breadth"], search["candidates"]) == (0, 20)  # one is of the delta
        assert [step["name"] for step in told["steps"]] == ["filter", "search", "fields"]
        assert all(step["milliseconds"] >= 0 for step in told["steps"])
        groups = await here.search(product_id="p03", k=9, group_by="model", explain=True)
        assert len(groups["explain"]["searches"]) > 1
        assert [each["k"] for each in groups["explain"]["searches"]][:1] == [9]
        assert "explain" not in await here.search(**asked, explain=False)
        headers = {"authorization": f"Bearer {pool.token()}"}
        path = path_of(here.model, "search")
        reply = await here.client.post(path, json={**asked, "explain": True}, headers=headers)
        (error,) = assert_problem(reply, 422, "invalid")["errors"]
        assert error["field"] == "explain"
        reply = await here.client.post(path, json={**asked, "explain": False}, headers=headers)
        assert reply.status_code == 200
        miss = {**asked, "expected_product_id": "p01"}
        reply = await here.client.post(
            path_of(here.model, "explain-miss"), json=miss, headers=headers
        )
        assert_problem(reply, 403)


async def test_a_miss_is_explained(shop: Opened) -> None:
    """Every reason that an exact index can have, with the exact rank."""
    async with shop() as here:
        await stocked(here)
        everything = await here.search(vector=vector(1).tolist(), k=100)
        order = [(hit["product_id"], hit["score"]) for hit in everything["neighbors"]]
        query = {"vector": vector(1).tolist(), "k": 5}

        async def miss(expected: str, **more: Any) -> Json:
            body = {**query, **more, "expected_product_id": expected}
            reply = await here.client.post(path_of(here.model, "explain-miss"), json=body)
            assert reply.status_code == 200, reply.text
            answer: Json = reply.json()
            assert answer["product_id"] == expected
            assert answer["detail"]
            return answer

        for rank, (name, score) in enumerate(order, 1):
            told = await miss(name)
            assert (told["rank"], told["score"]) == (rank, score)
            assert told["reason"] == ("found" if rank <= 5 else "beyond_k")
        name, score = order[2]
        for reason, more in (
            ("excluded", {"exclude": [name]}),
            ("filtered_out", {"filter": {"title": "none"}}),
            ("below_min_score", {"min_score": score + 0.01}),
            ("not_chosen", {"group_by": "none"}),
        ):
            told = await miss(name, **more)
            assert told["reason"] == reason
            assert (told["rank"] is None) == (reason in {"excluded", "filtered_out"})
        boost = {"attribute": "stock", "weight": 2.0, "min": 0, "max": 30}
        boosted = await here.search(vector=vector(1).tolist(), k=100, boost=[boost])
        for rank, hit in enumerate(boosted["neighbors"], 1):
            told = await miss(hit["product_id"], boost=[boost])
            assert (told["rank"], told["score"]) == (rank, hit["score"])
        assert (await miss("p-none"))["reason"] == "no_such_row"
        token = await here.delete("p20")
        told = await miss("p20", min_watermark=token)
        assert (told["reason"], told["rank"]) == ("no_such_row", None)
        several = {"vectors": [vector(1).tolist()], "expected_product_id": "p01"}
        for body, field in (
            ({**several, "explain": True}, "explain"),
            ({**several, "group_size": 2}, "group_size"),
            (several, "vectors"),
            ({**query, "expected_product_id": ""}, "expected_product_id"),
        ):
            path = path_of(here.model, "explain-miss")
            reply = await here.client.post(path, json=body)
            (error,) = assert_problem(reply, 422, "invalid")["errors"]
            assert error["field"] == field
            reply = await here.client.post(path, json=body | {"min_watermark": "none"})
            assert_problem(reply, 400, "unreadable")


async def test_what_is_stored_and_not_in_the_index_is_told_apart(shop: Opened) -> None:
    """A vector that no build takes, and one that this process has not read yet."""
    async with shop(deaf=True, poll_s=600) as here:
        resources = here.resources
        model = await resources.models.known_model(here.model)
        await resources.embeddings.store_batch(model, [("zero", bytes(32))])
        await resources.embeddings.store_batch(model, [("late", vector(77).tobytes())])
        for name, reason in (("zero", "quarantined"), ("late", "not_indexed_yet")):
            reply = await here.client.post(
                path_of(here.model, "explain-miss"),
                json={"product_id": "p01", "expected_product_id": name},
            )
            assert (reply.json()["reason"], reply.json()["rank"]) == (reason, None)
