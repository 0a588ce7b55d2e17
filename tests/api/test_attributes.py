"""Attributes over HTTP: written with a vector, in batches or alone, and given back."""

from typing import Any

import httpx
import msgspec
import pytest

from tests.api.conftest import Service
from tests.api.serving import (
    IDS,
    assert_problem,
    build_here,
    caught_up,
    client_of,
    eventually,
    path_of,
    vector,
)

ATTRIBUTES = {
    "brand": "Ünïcode",
    "price": 19.9,
    "huge": 1e308,
    "stock": 3,
    "zero": 0,
    "sold": False,
    "tags": ["a", "b"],
    "none": [],
    "x" * 64: "y" * 256,
}


async def put(client: httpx.AsyncClient, path: str, **more: Any) -> httpx.Response:
    """Stores an embedding, with or without attributes."""
    return await client.put(path, json={"vector": vector(1).tolist(), **more})


async def attributes_of(client: httpx.AsyncClient, path: str) -> Any:
    """The attributes of an embedding, as its route and its list give them; None without any."""
    item = (await client.get(path)).json()
    listed = await client.get(path.rpartition("/")[0], params={"limit": 100})
    (same,) = [each for each in listed.json()["items"] if each["product_id"] == item["product_id"]]
    assert same == item
    without = await client.get(path.rpartition("/")[0], params={"limit": 100, "vectors": "false"})
    assert [
        each.get("attributes")
        for each in without.json()["items"]
        if each["product_id"] == item["product_id"]
    ] == [item.get("attributes")]
    return item.get("attributes")


@pytest.mark.parametrize("product_id", IDS)
async def test_attributes_make_the_round_trip(client: httpx.AsyncClient, product_id: str) -> None:
    """Whatever the id, all types come back as they were sent; absent they stay, `{}` clears."""
    path = path_of("m-attributes", "embeddings", product_id)
    assert (await put(client, path, attributes=ATTRIBUTES)).status_code in {200, 201}
    assert await attributes_of(client, path) == ATTRIBUTES
    await put(client, path)
    assert await attributes_of(client, path) == ATTRIBUTES
    await put(client, path, attributes={})
    assert await attributes_of(client, path) is None
    assert (await client.delete(path)).status_code == 204


async def test_a_whole_number_of_any_size_comes_back(client: httpx.AsyncClient) -> None:
    """In msgpack too, whose integers have 64 bits; one row costs no page of others."""
    path = path_of("m-large-numbers", "embeddings", "a")
    packed = {"accept": "application/msgpack"}
    large = {"n": 1 << 70}
    assert (await put(client, path, attributes=large)).status_code == 201
    patched = await client.patch(path, json={"attributes": {"m": 1 << 64}}, headers=packed)
    assert msgspec.msgpack.decode(patched.content)["attributes"] == large | {"m": 1 << 64}
    for url in (path, path.rpartition("/")[0]):
        got = msgspec.msgpack.decode((await client.get(url, headers=packed)).content)
        (item,) = got.get("items", [got])
        assert item["attributes"] == large | {"m": 1 << 64}


async def test_a_patch_merges_and_answers_with_the_result(
    service: Service, client: httpx.AsyncClient
) -> None:
    """Names are set, replaced and removed; a search may wait for its watermark."""
    path = path_of("m-patched", "embeddings", "a/b")
    await put(client, path, attributes={"a": 1, "b": 2})
    before = (await client.get(path)).json()
    reply = await client.patch(path, json={"attributes": {"a": None, "b": "x", "c": True}})
    assert reply.status_code == 200, reply.text
    changed = {"b": "x", "c": True}
    assert reply.json() == {
        "product_id": "a/b",
        "updated_at": reply.json()["updated_at"],
        "attributes": changed,
    }
    presented = service.resources.watermarks.decode(reply.headers["x-watermark"])
    assert presented.authentic
    assert presented.watermark.product_id == "a/b"
    after = (await client.get(path)).json()
    assert after == {**before, "attributes": changed, "updated_at": reply.json()["updated_at"]}
    assert await attributes_of(client, path) == changed


async def test_a_search_holds_the_watermark_of_a_patch(service: Service) -> None:
    """It answers, and no vector counts as changed: the index has the same as before."""
    client, model = service.client, "m-watermark"
    entries = [{"product_id": f"p{n}", "vector": vector(n).tolist()} for n in range(20)]
    await client.post(f"/models/{model}/embeddings:batch", json={"embeddings": entries})
    requested = await client.post(path_of(model, "builds"), json={"matrix_k": 3})
    await build_here(service.resources, requested.json()["build_id"])
    await eventually(client, model)
    assert await caught_up(client, model, "p3") == 0
    path = path_of(model, "embeddings", "p3")
    reply = await client.patch(path, json={"attributes": {"price": 1}})
    body = {"product_id": "p3", "min_watermark": reply.headers["x-watermark"]}
    found = await client.post(path_of(model, "search"), json=body)
    assert found.status_code == 200, found.text
    assert found.json()["index"]["fresh"] == 0
    assert len(found.json()["neighbors"]) == 10


async def test_a_patch_of_nothing_is_a_404_and_makes_nothing(client: httpx.AsyncClient) -> None:
    """Of an unknown model version, a row that never was, and a deleted one, which stays deleted."""
    change = {"attributes": {"a": 1}}
    assert_problem(await client.patch("/models/m-none/embeddings/x", json=change), 404, "not-found")
    assert_problem(await client.get("/models/m-none"), 404, "not-found")
    path = path_of("m-revived", "embeddings", "gone")
    never = path_of("m-revived", "embeddings", "never")
    await put(client, path, attributes={"old": 1})
    assert (await client.delete(path)).status_code == 204
    for where in (path, never):
        assert_problem(await client.patch(where, json=change), 404, "not-found")
        assert_problem(await client.get(where), 404, "not-found")
    assert (await put(client, path)).status_code == 201
    assert await attributes_of(client, path) is None


async def test_a_batch_sets_those_of_the_entries_that_have_any(client: httpx.AsyncClient) -> None:
    """In JSON and in msgpack; all other entries keep what they have."""
    model = "m-batches"
    keep = path_of(model, "embeddings", "keep")
    await put(client, keep, attributes={"kept": 1})
    for media, encode in (
        ("application/json", msgspec.json.encode),
        ("application/msgpack", msgspec.msgpack.encode),
    ):
        entries = [
            {"product_id": "keep", "vector": vector(1).tolist()},
            {"product_id": "set", "vector": vector(2).tolist(), "attributes": {"by": media}},
            {"product_id": "clear", "vector": vector(3).tolist(), "attributes": {}},
        ]
        await put(client, path_of(model, "embeddings", "clear"), attributes={"a": 1})
        body = encode({"embeddings": entries})
        headers = {"content-type": media}
        reply = await client.post(
            f"/models/{model}/embeddings:batch", content=body, headers=headers
        )
        assert reply.json() == {"stored": 3}, reply.text
        assert await attributes_of(client, keep) == {"kept": 1}
        assert await attributes_of(client, path_of(model, "embeddings", "set")) == {"by": media}
        assert await attributes_of(client, path_of(model, "embeddings", "clear")) is None


@pytest.mark.parametrize(
    ("attributes", "field", "message"),
    [
        ('{"a": {"b": 1}}', "attributes.a", "is not a string, number, boolean or list of strings"),
        ('{"a": 1, "b": [1]}', "attributes.b", "[0] is not a string"),
        ('{"a b": 1}', "attributes", "'a b' is no name of an attribute"),
        ('{"a": 1e400}', "attributes.a", "out of range"),
        ('{"a": 9007199254740993}', "attributes.a", "is no number that float64 holds exactly"),
        ('{"a": "' + "x" * 257 + '"}', "attributes.a", "has 257 characters, the most is 256"),
        ("[]", "attributes", "Expected `object`, got `array`"),
        ("null", "attributes", "Expected `object`, got `null`"),
        ('"x"', "attributes", "Expected `object`, got `str`"),
        ("{" + " " * 70_000 + "}", "attributes", "the most is 8192 as compact JSON"),
    ],
)
async def test_what_is_wrong_is_named_with_its_place(
    client: httpx.AsyncClient, attributes: str, field: str, message: str
) -> None:
    """Of one, of a batch and of a change; and nothing is stored."""
    path = path_of("m-wrong", "embeddings", "p")
    numbers = msgspec.json.encode(vector(1).tolist()).decode()
    await client.put(path, content=f'{{"vector": {numbers}, "attributes": {{"as": "before"}}}}')
    entry = f'{{"product_id": "p", "vector": {numbers}, "attributes": {attributes}}}'
    good = f'{{"product_id": "q", "vector": {numbers}}}'
    for reply, at in (
        (
            await client.put(path, content=f'{{"vector": {numbers}, "attributes": {attributes}}}'),
            field,
        ),
        (
            await client.post(
                "/models/m-wrong/embeddings:batch", content=f'{{"embeddings": [{good}, {entry}]}}'
            ),
            f"embeddings[1].{field}",
        ),
        (await client.patch(path, content=f'{{"attributes": {attributes}}}'), field),
    ):
        (error,) = assert_problem(reply, 422, "invalid")["errors"]
        assert error["field"] == at
        assert message in error["message"]
    assert await attributes_of(client, path) == {"as": "before"}
    assert_problem(await client.get(path_of("m-wrong", "embeddings", "q")), 404)


async def test_null_is_for_patches_alone(client: httpx.AsyncClient) -> None:
    """A merge patch removes by it; with a vector it is no value."""
    path = path_of("m-null", "embeddings", "p")
    reply = await put(client, path, attributes={"a": None})
    (error,) = assert_problem(reply, 422, "invalid")["errors"]
    assert error["field"] == "attributes.a"
    assert_problem(await client.get(path), 404)


async def test_a_bad_body_of_a_patch_changes_nothing(client: httpx.AsyncClient) -> None:
    """A field that is none, none at all, and what cannot be read."""
    path = path_of("m-bodies", "embeddings", "p")
    await put(client, path, attributes={"a": 1})
    for content, status in (
        ('{"attributes": {}, "vector": [1]}', 422),
        ("{}", 422),
        ("[]", 422),
        ('{"attributes": {"a": 2}', 400),
        ('{"attributes": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}", 400),
        ('{"attributes": {"a": ' + "[" * 20_000 + "]" * 20_000 + "}}", 400),
    ):
        assert_problem(await client.patch(path, content=content), status)
    assert await attributes_of(client, path) == {"a": 1}
    reply = await client.patch(path, json={"attributes": {}})
    assert reply.json()["attributes"] == {"a": 1}


async def test_only_operators_change_attributes(service: Service) -> None:
    """A reader reads them, and anyone else does not."""
    path = path_of("m-rights", "embeddings", "p")
    await put(service.client, path, attributes={"a": 1})
    for groups, status in (((), 403), (("readers",), 200)):
        async with client_of(service.app, service.pool.token(*groups)) as other:
            assert_problem(await other.patch(path, json={"attributes": {"a": 2}}), 403)
            assert (await other.get(path)).status_code == status
    async with client_of(service.app, None) as nobody:
        assert_problem(await nobody.patch(path, json={"attributes": {"a": 2}}), 401)
    assert await attributes_of(service.client, path) == {"a": 1}


async def test_without_attributes_answers_are_as_they_were(client: httpx.AsyncClient) -> None:
    """Neither an embedding nor a list has a field more."""
    path = path_of("m-plain", "embeddings", "p")
    stored = await put(client, path)
    assert list(stored.json()) == ["product_id", "dimension", "updated_at"]
    got = await client.get(path)
    assert list(got.json()) == ["product_id", "dimension", "updated_at", "vector"]
    page = await client.get(path_of("m-plain", "embeddings"))
    assert page.json() == {"items": [got.json()], "next_cursor": None}
