"""`Idempotency-Key`: on every write, one effect and one answer, whoever asks again and when."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from core.dynamo.wire import AttributeValue, Item
from tests.api.conftest import Service
from tests.api.people import Person, person, same
from tests.api.serving import assert_problem, own_model, path_of, vector
from tests.api.writes import (
    Prepare,
    Write,
    delete_embedding,
    every_write,
    publish,
    request_build,
    send,
    state,
)
from worker.user_deletion import delete_user

GOLDEN = Path(__file__).parents[1] / "golden" / "23e14f8" / "idempotency.json"


class GoldenRequest(msgspec.Struct):
    """As it was sent to 23e14f8."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class GoldenReply(msgspec.Struct):
    """As 23e14f8 answered."""

    status: int
    headers: dict[str, str]
    body: bytes


class Answered(msgspec.Struct):
    """A request, its answer, and the record that 23e14f8 left of it."""

    request: GoldenRequest
    reply: GoldenReply
    item: Item


@pytest.fixture(scope="module", autouse=True)
async def _published(service: Service) -> None:
    """Has the build that is promoted."""
    await publish(service)


@pytest.fixture
async def ada(service: Service) -> AsyncIterator[Person]:
    """An operator of this test's own."""
    async with person(service, "operators") as caller:
        yield caller


@pytest.fixture
async def bob(service: Service) -> AsyncIterator[Person]:
    """Another one."""
    async with person(service, "operators") as caller:
        yield caller


@pytest.fixture
async def model(service: Service) -> AsyncIterator[str]:
    """A model version of this test's own."""
    async with own_model(service.resources) as name:
        yield name


@every_write
async def test_a_write_sent_again_is_answered_as_before(
    ada: Person, model: str, prepare: Prepare, status: int
) -> None:
    """To the byte, headers too, and nothing happens a second time."""
    write = await prepare(ada, model)
    first = await send(ada, write)
    assert first.status_code == status, first.text
    after = await state(ada, model)
    for _ in range(2):
        same(first, await send(ada, write))
    assert await state(ada, model) == after


@every_write
async def test_a_key_is_of_one_request(
    ada: Person, model: str, prepare: Prepare, status: int
) -> None:
    """For another method, path, query or body it is refused, and nothing happens."""
    write = await prepare(ada, model)
    assert (await send(ada, write)).status_code == status
    after = await state(ada, model)
    method, path, body = write
    others: list[Write] = [
        (method, path + "?metric=cosine", body),
        ("POST", "/reports", {"title": "another one"}),
        ("PATCH", "/users/me", {"name": "another one"}),
        ("PUT", path_of(model, "embeddings", "another"), {"vector": vector(2).tolist()}),
        ("POST", path_of(model, "builds"), {"matrix_k": 4}),
    ]
    for other in others:
        if other != write:
            assert_problem(await send(ada, other), 422, "key-reused")
    assert await state(ada, model) == after
    same(await send(ada, write), await send(ada, write))


@every_write
async def test_keys_of_two_callers_never_meet(
    ada: Person, bob: Person, model: str, prepare: Prepare, status: int
) -> None:
    """The same key, and even the same request, is each caller's own."""
    write = await prepare(ada, model)
    first = await send(ada, write)
    report = await send(bob, ("POST", "/reports", {"title": "mine"}))
    assert report.status_code == 201
    same(first, await send(ada, write))
    if write[1] in {"/users", "/reports"}:
        theirs = await send(bob, write, "key-2")
        assert theirs.status_code == status
        assert theirs.json()["user_id"] == bob.sub


@every_write
async def test_of_the_same_request_at_once_one_acts(
    ada: Person, model: str, prepare: Prepare, status: int
) -> None:
    """The others are told that it is in flight, or get its answer; then all get it."""
    write = await prepare(ada, model)
    replies = await asyncio.gather(*(send(ada, write) for _ in range(5)))
    answered = [reply for reply in replies if reply.status_code == status]
    for reply in replies:
        if reply.status_code != status:
            assert_problem(reply, 409, "in-flight")
    after = await state(ada, model)
    same(*answered, await send(ada, write))
    assert await state(ada, model) == after
    if write[1] == "/reports":
        assert len((await ada.client.get("/reports")).json()["items"]) == 1


async def test_a_refusal_is_kept(ada: Person, model: str) -> None:
    """Of any kind: the same request is answered as before, though it would succeed by now."""
    refused: list[tuple[Write, int]] = [
        (("PATCH", "/users/me", {"name": "x"}), 404),
        (("DELETE", f"/reports/{'0' * 32}", None), 404),
        (("POST", "/reports", {"title": ""}), 422),
        (("POST", "/reports", [1]), 422),
        (("PUT", path_of(model, "embeddings", "a"), {"vector": []}), 422),
        (("POST", path_of(model, "builds"), {}), 404),
        (("DELETE", path_of(model, "embeddings", "a"), None), 404),
    ]
    first = [await send(ada, write, f"k{place}") for place, (write, _) in enumerate(refused)]
    assert [reply.status_code for reply in first] == [status for _, status in refused]
    for (write, _), reply in zip(refused, first, strict=True):
        same(reply, await send(ada, write, None))  # a key changes nothing in how it is said
    await ada.profile()
    await delete_embedding(ada, model)
    for place, (write, _) in enumerate(refused):
        same(first[place], await send(ada, write, f"k{place}"))


async def test_an_unreadable_body_under_a_key(ada: Person) -> None:
    """Is 400 as without one, each time."""
    for _ in range(2):
        reply = await ada.client.post(
            "/reports", content="title=x", headers={"idempotency-key": "k"}
        )
        assert_problem(reply, 400, "unreadable")
    assert_problem(await send(ada, ("POST", "/reports", {"title": "x"}), "k"), 422, "key-reused")


@pytest.mark.parametrize("key", ["", "k" * 256, "é", "a\tb", "\x7f"], ids=ascii)
async def test_a_key_that_is_none_is_refused(ada: Person, key: str) -> None:
    """Rather than passed over: its caller counts on it."""
    headers = cast("dict[str, str]", {"idempotency-key": key.encode()})
    reply = await ada.client.post("/reports", json={"title": "t"}, headers=headers)
    problem = assert_problem(reply, 422, "invalid")
    assert problem["errors"][0]["field"] == "Idempotency-Key"
    assert (await ada.client.get("/reports")).json()["items"] == []


@pytest.mark.parametrize("key", ["k", "k" * 255, '"a b"', "~!#$%&'()*+,/:;=?@[]"])
async def test_a_key_of_any_printable_characters(ada: Person, key: str) -> None:
    """Up to 255 of them."""
    write = ("POST", "/reports", {"title": "t"})
    same(await send(ada, write, key), await send(ada, write, key))


async def test_an_open_build_is_answered_again_too(ada: Person, model: str) -> None:
    """A request that was answered with a build of someone else's stays answered with it."""
    write = await request_build(ada, model)
    opened = await send(ada, write, None)
    first = await send(ada, write)
    assert first.json()["build_id"] == opened.json()["build_id"]
    same(first, await send(ada, write))
    other = ("POST", write[1], {"matrix_k": 4})
    conflict = await send(ada, other, "other")
    assert_problem(conflict, 409, "build-conflict")
    same(conflict, await send(ada, other, "other"))


async def test_a_deletion_sent_again_spares_the_profile_made_since(
    service: Service, ada: Person
) -> None:
    """Its answer outlives the profile that it deleted; all others of that life are forgotten."""
    headers = {"idempotency-key": "leave"}
    await ada.client.post("/users", json={"name": "first"}, headers={"idempotency-key": "made"})
    gone = await ada.client.delete("/users/me", headers=headers)
    assert gone.status_code == 202
    await delete_user(service.resources, ada.sub)
    made = await ada.client.post(
        "/users", json={"name": "second"}, headers={"idempotency-key": "made"}
    )
    assert made.status_code == 201
    assert made.json()["name"] == "second"
    same(gone, await ada.client.delete("/users/me", headers=headers))
    assert (await ada.client.get("/users/me")).json() == made.json()
    assert (await ada.client.delete("/users/me")).status_code == 202
    await delete_user(service.resources, ada.sub)
    same(gone, await ada.client.delete("/users/me", headers=headers))


async def test_what_23e14f8_answered_is_answered_again(service: Service) -> None:
    """To the byte: its records hold replies, of all kinds, and are good for a day."""
    answered = msgspec.json.decode(GOLDEN.read_bytes(), type=list[Answered])
    async with person(service, "operators", sub="golden") as caller:
        for each in answered:
            item = {**each.item, "expires_at": AttributeValue(N=str(int(time.time()) + 60))}
            table = service.settings.table("idempotency")
            await service.resources.dynamo.call("put_item", TableName=table, Item=item)
            headers = {**each.request.headers, "idempotency-key": each.item["key"].S or ""}
            reply = await caller.client.request(
                each.request.method, each.request.path, content=each.request.body, headers=headers
            )
            assert reply.status_code == each.reply.status
            assert reply.content == each.reply.body
            assert {name: reply.headers[name] for name in each.reply.headers} == each.reply.headers


async def test_a_retry_is_answered_in_the_first_media_type(ada: Person, model: str) -> None:
    """Whatever it accepts, as the answer is to be the same to the byte."""
    for first_type in ("application/msgpack", "application/json"):
        path = path_of(model, "embeddings", first_type)
        replies = [
            await ada.client.put(
                path,
                json={"vector": [1.0, 2.0]},
                headers={"idempotency-key": first_type, "accept": accept},
            )
            for accept in (first_type, "application/json", "application/msgpack")
        ]
        assert same(*replies).headers["content-type"] == first_type
