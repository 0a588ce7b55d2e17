"""Reports over HTTP: the caller's own, and nobody else's."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest

from core.dynamo.cursors import Cursors
from core.models import now
from tests.api.conftest import Service
from tests.api.people import Person, person, same
from tests.api.serving import assert_problem

NOWHERE = "0" * 32
SECRET = "what only its owner may know"


@pytest.fixture
async def ada(service: Service) -> AsyncIterator[Person]:
    """A caller of this test's own."""
    async with person(service) as caller:
        yield caller


@pytest.fixture
async def bob(service: Service) -> AsyncIterator[Person]:
    """Another one."""
    async with person(service) as caller:
        yield caller


async def everything(client: httpx.AsyncClient, limit: int = 100) -> list[dict[str, Any]]:
    """All of the caller's reports, page by page."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        parameters: dict[str, Any] = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/reports", params=parameters)).json()
        assert len(page["items"]) <= limit
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


async def test_a_report_is_created_read_changed_and_deleted(ada: Person) -> None:
    """From its first answer to its last."""
    client = ada.client
    sent = {
        "title": "Ünïcode 🐍",
        "author": "Ada",
        "date": "2025-09-30",
        "reference": "doi:10.1000/182",
        "favorites": ["b", "a", "b", "日本"],
    }
    made = await client.post("/reports", json=sent)
    assert made.status_code == 201
    body = made.json()
    path = made.headers["location"]
    assert path == f"/reports/{body['id']}"
    assert body == {
        "id": body["id"],
        "user_id": ada.sub,
        **sent,
        "favorites": ["b", "a", "日本"],
        "created_at": body["created_at"],
        "updated_at": body["created_at"],
    }
    assert body["created_at"] <= now().isoformat()
    got = await client.get(path)
    assert (got.content, got.headers["etag"]) == (made.content, made.headers["etag"])
    assert (await client.get("/reports")).json() == {"items": [body], "next_cursor": None}
    patch = {"title": "new", "author": None, "favorites": None}
    changed = await client.patch(path, json=patch)
    assert changed.status_code == 200
    assert changed.headers["etag"] != made.headers["etag"]
    assert changed.json() == body | patch | {
        "favorites": [],
        "updated_at": changed.json()["updated_at"],
    }
    assert (await client.get(path)).content == changed.content
    gone = await client.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    missing = await client.get(f"/reports/{NOWHERE}")
    same(missing, await client.delete(path), await client.get(path))
    assert (await client.get("/reports")).json() == {"items": [], "next_cursor": None}


async def test_a_body_that_curl_labels_a_form(ada: Person) -> None:
    """Is read as the JSON that it is, to the letter of the documented command."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    reply = await ada.client.post("/reports", content='{"title": "Test Report"}', headers=headers)
    assert reply.status_code == 201
    assert reply.json()["title"] == "Test Report"
    for content in ("title=Test+Report", "", "{'title': 'x'}", '{"title": "x"', '{"title": "x"}}'):
        reply = await ada.client.post("/reports", content=content, headers=headers)
        assert_problem(reply, 400, "unreadable")


BAD: list[tuple[str, str, str]] = [
    ("no title", "{}", "title"),
    ("null for a title", '{"title": null}', "title"),
    ("a number for a title", '{"title": 1}', "title"),
    ("a title of 501 characters", f'{{"title": "{"x" * 501}"}}', "title"),
    ("no date", '{"title": "t", "date": "2025-02-29"}', "date"),
    ("a time for a date", '{"title": "t", "date": "2025-02-28T00:00:00Z"}', "date"),
    ("a text for favorites", '{"title": "t", "favorites": "a"}', "favorites"),
    ("a number among them", '{"title": "t", "favorites": ["a", 1]}', "favorites[1]"),
    ("a blank one among them", '{"title": "t", "favorites": ["a", " "]}', "favorites[1]"),
    ("an unknown field", '{"title": "t", "titel": "t"}', "titel"),
    ("someone's id", '{"title": "t", "user_id": "me"}', "user_id"),
    ("a list", "[]", "body"),
]


@pytest.mark.parametrize(("body", "field"), [pytest.param(*case[1:], id=case[0]) for case in BAD])
async def test_a_bad_report_is_refused(ada: Person, body: str, field: str) -> None:
    """Naming the field; nothing is stored, and nothing changed."""
    problem = assert_problem(await ada.client.post("/reports", content=body), 422, "invalid")
    assert problem["errors"][0]["field"] == field
    made = await ada.report()
    if body != "{}":
        for report_id in (made["id"], NOWHERE):
            reply = await ada.client.patch(f"/reports/{report_id}", content=body)
            assert assert_problem(reply, 422, "invalid")["errors"][0]["field"] == field
    assert await everything(ada.client) == [made]


async def test_favorites_up_to_their_limit(ada: Person) -> None:
    """A thousand different ones, however often each is sent."""
    ids = [f"p{number % 1000}" for number in range(2500)]
    made = await ada.report(favorites=ids)
    assert made["favorites"] == ids[:1000]
    reply = await ada.client.post("/reports", json={"title": "t", "favorites": [*ids, "one more"]})
    assert_problem(reply, 422, "invalid")


async def test_if_match_holds_a_change_to_a_version(ada: Person) -> None:
    """One tag or several of which one holds; `*` is any; a weak one is none."""
    path = f"/reports/{(await ada.report())['id']}"
    tag = (await ada.client.get(path)).headers["etag"]

    async def patched(if_match: str) -> int:
        nonlocal tag
        reply = await ada.client.patch(path, json={"author": "x"}, headers={"if-match": if_match})
        if reply.status_code == 200:
            assert reply.headers["etag"] != tag
            tag = reply.headers["etag"]
        else:
            assert_problem(reply, 412, "stale")
        return reply.status_code

    old = tag
    assert await patched(tag) == 200
    for stale in (
        old,
        f"W/{tag}",
        '"0"',
        '"no such tag"',
        '"999999999999999999999999999999"',
        tag.strip('"'),
        "",
        "nonsense",
        f'"x{tag}"',
        f'W/{tag}, {old}, "x, y"',
    ):
        assert await patched(stale) == 412, stale
    for fresh in (tag, "*", " * "):
        assert await patched(fresh) == 200
    assert await patched(f'{old}, "a,b" , {tag}') == 200
    assert await patched(f"{tag},{old}") == 200


async def test_if_match_holds_a_deletion_to_a_version(ada: Person) -> None:
    """As it does a change; and what is not there is not found, whatever is named."""
    for good in ("{tag}", "*", '"77", {tag}', 'W/"1", {tag}'):
        path = f"/reports/{(await ada.report())['id']}"
        old = (await ada.client.get(path)).headers["etag"]
        tag = (await ada.client.patch(path, json={"author": "x"})).headers["etag"]
        for stale in (old, f"W/{tag}", f'{old}, "77"', "nonsense"):
            reply = await ada.client.delete(path, headers={"if-match": stale})
            assert_problem(reply, 412, "stale")
        reply = await ada.client.delete(path, headers={"if-match": good.format(tag=tag)})
        assert reply.status_code == 204
        for any_ in (old, tag, "*", f"{old}, {tag}", "nonsense"):
            for method in ("DELETE", "PATCH"):
                body = {"title": "t"} if method == "PATCH" else None
                reply = await ada.client.request(
                    method, path, json=body, headers={"if-match": any_}
                )
                assert_problem(reply, 404, "not-found")


async def test_changes_at_once_lose_nothing(ada: Person) -> None:
    """Of those of one version one holds; those of any version are all kept."""
    path = f"/reports/{(await ada.report())['id']}"
    tag = (await ada.client.get(path)).headers["etag"]
    replies = await asyncio.gather(
        *(
            ada.client.patch(path, json={"title": f"t{number}"}, headers={"if-match": tag})
            for number in range(5)
        )
    )
    assert sorted(reply.status_code for reply in replies) == [200, 412, 412, 412, 412]
    patches: list[dict[str, Any]] = [
        {"title": "all"},
        {"author": "of"},
        {"date": "2025-01-01"},
        {"reference": "these"},
        {"favorites": ["a"]},
    ]
    replies = await asyncio.gather(*(ada.client.patch(path, json=patch) for patch in patches))
    assert [reply.status_code for reply in replies] == [200] * len(patches)
    kept = (await ada.client.get(path)).json()
    for patch in patches:
        assert patch.items() <= kept.items()


async def test_pages_go_from_the_newest_to_the_oldest(ada: Person, bob: Person) -> None:
    """Each report once, whatever the pages' length; of others none."""
    made = [await ada.report(title=f"{number}") for number in range(7)]
    await bob.report(title=SECRET)
    for limit in (1, 3, 7, 100):
        assert await everything(ada.client, limit) == made[::-1]
    for bad in ("0", "101", "-1", "x"):
        assert_problem(await ada.client.get("/reports", params={"limit": bad}), 422, "invalid")


async def test_a_cursor_that_does_not_hold_is_told_in_one_way(
    service: Service, ada: Person, bob: Person
) -> None:
    """Changed, foreign, of another list, old or made up: 400, and the body reveals nothing."""
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(person(service, "operators", sub=ada.sub))
        for _ in range(3):
            await ada.report()
            await bob.report()
        mine, theirs = [
            (await one.client.get("/reports", params={"limit": 1})).json()["next_cursor"]
            for one in (ada, bob)
        ]
        models = await operator.client.get("/models/m-1/embeddings", params={"limit": 1})
        cursors = service.resources.cursors
        position = {"id": NOWHERE, "created_at": "2099"}
        flipped = bytearray(base64.urlsafe_b64decode(mine + "=" * (-len(mine) % 4)))
        flipped[-1] ^= 1
        ended = Cursors([], 1, now=lambda: 0.0)
        ended._ciphers = cursors._ciphers  # noqa: SLF001 - the same key, an hour long gone
        bad = [
            theirs,
            models.json()["next_cursor"],
            mine[:-1],
            mine + "A",
            mine[:10] + ("A" if mine[10] != "A" else "B") + mine[11:],
            base64.urlsafe_b64encode(flipped).decode().rstrip("="),
            "x",
            "é",
            "A" * 10_000,
            cursors.seal(position, caller=bob.sub, query="reports"),
            cursors.seal(position, caller=ada.sub, query="builds/m-1"),
            Cursors([], 60).seal(position, caller=ada.sub, query="reports"),
            ended.seal(position, caller=ada.sub, query="reports"),
        ]
        replies = [await ada.client.get("/reports", params={"cursor": cursor}) for cursor in bad]
        first = same(*replies)
        assert_problem(first, 400, "unreadable")
        good = await ada.client.get("/reports", params={"cursor": mine, "limit": 2})
        assert len(good.json()["items"]) == 2


async def test_someone_elses_and_none_are_answered_alike(ada: Person, bob: Person) -> None:
    """By every route that names a report, to the byte: with bodies, tags and keys of all kinds."""
    owned = await bob.report(title=SECRET)
    path = f"/reports/{owned['id']}"
    tag = (await bob.client.get(path)).headers["etag"]
    kinds: list[dict[str, str]] = [
        {},
        {"if-match": tag},
        {"if-match": '"77"'},
        {"if-match": "*"},
        {"if-match": f'"77", {tag}'},
        {"if-match": f"W/{tag}"},
        {"idempotency-key": "k"},
        {"idempotency-key": "l", "if-match": tag},
    ]
    seen = set()
    for method, body in (
        ("GET", None),
        ("HEAD", None),
        ("PATCH", {"title": "mine"}),
        ("PATCH", {}),
        ("PATCH", {"title": ""}),
        ("PATCH", {"nothing": 1}),
        ("DELETE", None),
    ):
        for headers in kinds:
            replies = []
            for report_id in (
                owned["id"],
                NOWHERE,
                owned["id"].upper() if owned["id"].upper() != owned["id"] else "g" * 32,
                owned["id"] + "0",
                "nonsense",
                "%2e%2e",
                "a%2Fb",
            ):
                keyed = dict(headers)
                if "idempotency-key" in headers:
                    keyed["idempotency-key"] += f"{method}{msgspec.json.encode(body)!r}{report_id}"
                replies.append(
                    await ada.client.request(
                        method, f"/reports/{report_id}", json=body, headers=keyed
                    )
                )
            first = same(*replies)
            seen.add(first.status_code)
            assert SECRET.encode() not in first.content
    assert seen == {404, 422}
    got = await bob.client.get(path)
    assert (got.json(), got.headers["etag"]) == (owned, tag)
    assert await everything(ada.client) == []
