"""`Idempotency-Key`: on every write, one effect and one answer, whoever asks again and when."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from uuid import uuid4

import httpx
import msgspec
import pytest

from tests.api.conftest import Service
from tests.api.dying import Dying
from tests.api.people import Person, person, same
from tests.api.serving import assert_problem, build_here, path_of, vector
from worker.deletion import delete_user

Write = tuple[str, str, Any]
"""Method, path and body."""

BATCH = [{"product_id": f"b{n}", "vector": vector(n).tolist()} for n in range(250)]


PROMOTED = "k-promoted"
"""A model version with a published build."""


@pytest.fixture(scope="module", autouse=True)
async def _published(service: Service) -> None:
    """Builds and publishes the one that is promoted."""
    await service.client.post(
        f"/models/{PROMOTED}/embeddings:batch", json={"embeddings": BATCH[:30]}
    )
    reply = await service.client.post(path_of(PROMOTED, "builds"), json={"matrix_k": 3})
    await build_here(service.resources, reply.json()["build_id"])


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


async def _create_user(_caller: Person, _model: str) -> Write:
    return "POST", "/users", {"name": "Ada", "preferences": {"a": [1.0]}}


async def _change_user(caller: Person, _model: str) -> Write:
    await caller.profile()
    return "PATCH", "/users/me", {"name": "Ada", "preferences": {"a": [1.0]}}


async def _delete_user(caller: Person, _model: str) -> Write:
    await caller.profile()
    return "DELETE", "/users/me", None


async def _create_report(_caller: Person, _model: str) -> Write:
    return "POST", "/reports", {"title": "Ünïcode", "favorites": ["b", "a"]}


async def _change_report(caller: Person, _model: str) -> Write:
    return "PATCH", f"/reports/{(await caller.report())['id']}", {"title": "new"}


async def _delete_report(caller: Person, _model: str) -> Write:
    return "DELETE", f"/reports/{(await caller.report())['id']}", None


async def _put_embedding(_caller: Person, model: str) -> Write:
    return "PUT", path_of(model, "embeddings", "a/b"), {"vector": vector(1).tolist()}


async def _delete_embedding(caller: Person, model: str) -> Write:
    method, path, body = await _put_embedding(caller, model)
    await caller.client.request(method, path, json=body)
    return "DELETE", path, None


async def _store_batch(_caller: Person, model: str) -> Write:
    return "POST", f"/models/{model}/embeddings:batch", {"embeddings": BATCH}


async def _request_build(caller: Person, model: str) -> Write:
    await _delete_embedding(caller, model)
    return "POST", path_of(model, "builds"), {"matrix_k": 3}


async def _cancel_build(caller: Person, model: str) -> Write:
    method, path, body = await _request_build(caller, model)
    reply = await caller.client.request(method, path, json=body)
    return "DELETE", f"/builds/{reply.json()['build_id']}", None


async def _promote_build(caller: Person, _model: str) -> Write:
    builds = (await caller.client.get(path_of(PROMOTED, "builds"))).json()["items"]
    (published,) = [build["build_id"] for build in builds if build["status"] == "published"]
    return "POST", path_of(PROMOTED, "promote"), {"build_id": published}


Prepare = Callable[[Person, str], Awaitable[Write]]
ALL: dict[str, tuple[Prepare, int]] = {
    "POST /users": (_create_user, 201),
    "PATCH /users": (_change_user, 200),
    "DELETE /users": (_delete_user, 202),
    "POST /reports": (_create_report, 201),
    "PATCH /reports": (_change_report, 200),
    "DELETE /reports": (_delete_report, 204),
    "PUT embedding": (_put_embedding, 201),
    "DELETE embedding": (_delete_embedding, 204),
    "POST batch": (_store_batch, 200),
    "POST builds": (_request_build, 202),
    "DELETE build": (_cancel_build, 202),
    "POST promote": (_promote_build, 200),
}
every_write = pytest.mark.parametrize(("prepare", "status"), ALL.values(), ids=ALL)


@pytest.fixture
def model() -> str:
    """A model version of this test's own."""
    return f"k-{uuid4().hex[:12]}"


async def send(caller: Person, write: Write, key: str | None = "key") -> httpx.Response:
    """Sends a write under a key."""
    method, path, body = write
    headers = {} if key is None else {"idempotency-key": key}
    content = b"" if body is None else msgspec.json.encode(body)
    return await caller.client.request(method, path, content=content, headers=headers)


async def state(caller: Person, model: str) -> list[Any]:
    """All that a write could have changed, as the caller sees it."""
    seen: list[Any] = [(await caller.client.get("/users/me")).content]
    for path in ("/reports", path_of(model, "builds"), path_of(model, "embeddings")):
        cursor: dict[str, str] | None = {}
        while cursor is not None:
            page = (await caller.client.get(path, params={"limit": "100"} | cursor)).json()
            seen += page.get("items", [])
            further = page.get("next_cursor")
            cursor = {"cursor": further} if further else None
    return seen


@pytest.fixture
def dying(service: Service, monkeypatch: pytest.MonkeyPatch) -> Dying:
    """A process that may die."""
    return Dying(service, monkeypatch)


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


@every_write
async def test_a_crash_after_the_claim(
    ada: Person, model: str, dying: Dying, prepare: Prepare, status: int
) -> None:
    """Nothing has happened; the key is blocked for its lease, and then does its work once."""
    write = await prepare(ada, model)
    before = await state(ada, model)
    dying.at(1, done=False)
    assert_problem(await send(ada, write), 503)
    dying.risen()
    assert await state(ada, model) == before
    assert_problem(await send(ada, write), 409, "in-flight")
    assert_problem(await send(ada, ("PUT", "/models/m/embeddings/x", {})), 422, "key-reused")
    dying.lease_ends()
    first = await send(ada, write)
    assert first.status_code == status, first.text
    after = await state(ada, model)
    same(first, await send(ada, write))
    assert await state(ada, model) == after


@every_write
async def test_a_crash_after_the_effect(
    ada: Person, model: str, dying: Dying, prepare: Prepare, status: int
) -> None:
    """It has happened, with its answer, which is given from then on; it never happens again."""
    write = await prepare(ada, model)
    dying.at(3 if "batch" in write[1] else 1, done=True)
    assert_problem(await send(ada, write), 503)
    dying.risen()
    after = await state(ada, model)
    if "batch" in write[1]:  # of many transactions, of which only the answer was missing
        dying.lease_ends()
    first = await send(ada, write)
    assert first.status_code == status, first.text
    assert await state(ada, model) == after
    same(first, await send(ada, write))
    assert await state(ada, model) == after


@every_write
async def test_a_server_error_is_not_kept(
    ada: Person, model: str, dying: Dying, prepare: Prepare, status: int
) -> None:
    """Where the process lives on, the key is free for the next try at once."""
    write = await prepare(ada, model)
    dying.at(1, done=False, for_good=False)
    assert_problem(await send(ada, write), 503)
    dying.risen()
    await asyncio.sleep(0.01)
    first = await send(ada, write)
    assert first.status_code == status, first.text
    same(first, await send(ada, write))


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
    await _delete_embedding(ada, model)
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
    write = await _request_build(ada, model)
    opened = await send(ada, write, None)
    first = await send(ada, write)
    assert first.json()["build_id"] == opened.json()["build_id"]
    same(first, await send(ada, write))
    other = ("POST", write[1], {"matrix_k": 4})
    conflict = await send(ada, other, "other")
    assert_problem(conflict, 409, "build-conflict")
    same(conflict, await send(ada, other, "other"))


async def test_a_batch_that_broke_off_is_finished_and_not_done_over(
    ada: Person, model: str, dying: Dying
) -> None:
    """What was stored before is not stored again: someone may have written over it since."""
    write = await _store_batch(ada, model)
    dying.at(2, done=False, for_good=False)
    problem = assert_problem(await send(ada, write), 503, "partly-stored")
    assert problem["stored"] == 99
    assert problem["unprocessed"] == [f"b{number}" for number in range(99, 250)]
    dying.risen()
    path = path_of(model, "embeddings", "b0")
    newer = vector(999).tolist()
    await ada.client.put(path, json={"vector": newer})
    await asyncio.sleep(0.01)
    first = await send(ada, write)
    assert first.json() == {"stored": 250}
    same(first, await send(ada, write))
    assert (await ada.client.get(path)).json()["vector"] == pytest.approx(newer)
    assert (await ada.client.get(path_of(model, "embeddings", "b249"))).status_code == 200


async def test_a_slow_request_loses_its_key_and_has_no_effect(
    service: Service, ada: Person, dying: Dying, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one took over after the lease; the first then finds that, and is not the second."""
    call = service.resources.dynamo.call
    slow = [True]
    stalls, goes_on = asyncio.Event(), asyncio.Event()

    async def stalling(operation: str, **parameters: Any) -> dict[str, Any]:
        if operation == "transact_write_items" and slow:
            slow.pop()
            stalls.set()
            await goes_on.wait()
        return await call(operation, **parameters)

    monkeypatch.setattr(service.resources.dynamo, "call", stalling)
    write = ("POST", "/reports", {"title": "once"})
    stalled = asyncio.create_task(send(ada, write))
    await stalls.wait()
    dying.lease_ends()
    quick = await send(ada, write)
    assert quick.status_code == 201
    goes_on.set()
    assert_problem(await stalled, 409, "in-flight")
    same(quick, await send(ada, write))
    assert len((await ada.client.get("/reports")).json()["items"]) == 1


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
