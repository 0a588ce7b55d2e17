"""Users over HTTP: each caller's own profile."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.api.conftest import Service
from tests.api.people import Person, person, same
from tests.api.serving import assert_problem

SECRET = "what only its owner may know"


@pytest.fixture
async def ada(service: Service) -> AsyncIterator[Person]:
    """A caller without a profile."""
    async with person(service) as caller:
        yield caller


@pytest.fixture
async def bob(service: Service) -> AsyncIterator[Person]:
    """Another one, with a profile."""
    async with person(service) as caller:
        await caller.profile(name=SECRET)
        yield caller


async def test_a_profile_is_created_read_changed_and_marked(ada: Person) -> None:
    """From its first answer to its last."""
    client = ada.client
    assert_problem(await client.get("/users/me"), 404, "not-found")
    sent = {
        "name": "Ada",
        "email": "ada@example.com",
        "avatar_url": "https://example.com/a.png",
        "preferences": {"theme": "dark"},
    }
    made = await client.post("/users", json=sent)
    assert made.status_code == 201
    assert made.headers["location"] == f"/users/{ada.sub}"
    body = made.json()
    assert body == {
        "user_id": ada.sub,
        **sent,
        "created_at": body["created_at"],
        "updated_at": body["created_at"],
        "deleting_at": None,
    }
    for name in ("me", ada.sub):
        assert (await client.get(f"/users/{name}")).json() == body
    assert_problem(await client.post("/users", json={}), 409, "already-exists")
    patch = {"name": None, "preferences": {"theme": None, "size": 2}}
    changed = (await client.patch(f"/users/{ada.sub}", json=patch)).json()
    assert changed.pop("updated_at") > body["updated_at"]
    assert changed == {
        **{name: value for name, value in body.items() if name != "updated_at"},
        "name": None,
        "preferences": {"size": 2},
    }
    gone = await client.delete("/users/me")
    assert gone.status_code == 202
    assert gone.json()["deleting_at"]
    assert (await client.get("/users/me")).json()["deleting_at"] == gone.json()["deleting_at"]


async def test_while_being_deleted_every_write_is_a_conflict(ada: Person) -> None:
    """Of the profile and of reports, those that are there and new ones."""
    await ada.profile()
    report = f"/reports/{(await ada.report())['id']}"
    await ada.client.delete("/users/me")
    for method, path, body in (
        ("POST", "/users", {}),
        ("PATCH", "/users/me", {"name": "Eve"}),
        ("DELETE", "/users/me", None),
        ("POST", "/reports", {"title": "t"}),
        ("PATCH", report, {"title": "t"}),
        ("DELETE", report, None),
    ):
        for headers in ({}, {"idempotency-key": f"{method} {path}"}):
            reply = await ada.client.request(method, path, json=body, headers=headers)
            assert_problem(reply, 409, "being-deleted")
    assert (await ada.client.get(report)).status_code == 200


PREFERENCES = [
    "{}",
    '{"int": 123456789012345678901234567890123456789012345678901234567890}',
    '{"digits": [' + "9" * 5000 + "]}",
    '{"floats": [1e-300, 1.0, -0.0, 1E5, 1e99999, 0.1000, 5e-324]}',
    '{"": {"": [[], [[]], {}, ""]}, " ": null}',
    '{"a.b": 1, "a": {"b": 2}, "a[0]": 3, "$ref": 4, "#n0": 5, ":v0": 6}',
    '{"ключ": "значение", "🐍": "\\ud83d\\udc0d", "e\u0301": "\u00e9", "\\u0061\\/": "\\u0000"}',
    '{ "spaces" : [ 1 ,\t2\r\n] }',
    '{"b": 1, "a": 2, "aa": true, "c": false}',
    '{"__proto__": 1, "constructor": {"prototype": []}}',
]


@pytest.mark.parametrize("text", PREFERENCES, ids=range(len(PREFERENCES)))
async def test_preferences_come_back_exactly(ada: Person, text: str) -> None:
    """To the character, whatever JSON they are; and no change of another field changes them."""
    sent = f'{{"preferences":{text}}}'.encode()
    replies = [
        await ada.client.post("/users", content=sent),
        await ada.client.get("/users/me"),
        await ada.client.patch("/users/me", json={"name": "Ada"}),
        await ada.client.patch("/users/me", json={"preferences": None}),
        await ada.client.patch("/users/me", content=sent),
        await ada.client.get("/users/me"),
    ]
    for place in (0, 1, 2):
        assert f'"preferences":{text},'.encode() in replies[place].content
    assert replies[3].json()["preferences"] == {}
    for place in (4, 5):
        assert _exactly(replies[place].text) == _exactly(f'{{"preferences":{text}}}')


def _exactly(text: str) -> Any:
    parsed = json.loads(text, parse_int=lambda t: ("n", t), parse_float=lambda t: ("n", t))
    # in a patch null removes; so it does not come back from one
    return {n: v for n, v in parsed["preferences"].items() if v is not None}


def _nested(levels: int) -> str:
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)


BAD: list[tuple[str, str, int, str]] = [
    ("101 levels", f'{{"preferences":{_nested(101)}}}', 422, "invalid"),
    ("900 levels", f'{{"preferences":{_nested(900)}}}', 422, "invalid"),
    ("50,000 levels", f'{{"preferences":{_nested(50_000)}}}', 400, "unreadable"),
    ("over 128 KiB", f'{{"preferences":{{"a":"{"x" * 131_072}"}}}}', 422, "invalid"),
    ("a list", '{"preferences":[]}', 422, "invalid"),
    ("a text", '{"preferences":"{}"}', 422, "invalid"),
    ("NaN", '{"preferences":{"a":NaN}}', 400, "unreadable"),
    ("half an escape", '{"preferences":{"a":"\\ud800"}}', 400, "unreadable"),
    ("an unknown field", '{"user_id":"me"}', 422, "invalid"),
    ("a name that is none", '{"name":1}', 422, "invalid"),
    ("a plain address", '{"avatar_url":"http://example.com"}', 422, "invalid"),
    ("a list for a body", "[]", 422, "invalid"),
    ("no JSON", "name=Ada", 400, "unreadable"),
    ("nothing", "", 400, "unreadable"),
]


@pytest.mark.parametrize(
    ("body", "status", "kind"), [pytest.param(*case[1:], id=case[0]) for case in BAD]
)
async def test_a_bad_profile_is_refused(ada: Person, body: str, status: int, kind: str) -> None:
    """By create and patch alike, before anyone looks whether there is one."""
    for headers in ({}, {"idempotency-key": "k"}):
        for method, path in (("POST", "/users"), ("PATCH", "/users/me")):
            keyed = {name: f"{value}{method}" for name, value in headers.items()}
            reply = await ada.client.request(method, path, content=body, headers=keyed)
            problem = assert_problem(reply, status, kind)
            if status == 422:
                assert problem["errors"]
    assert_problem(await ada.client.get("/users/me"), 404)


@pytest.mark.parametrize("text", [b'{"\xff":1}', b'{"a":"\xff"}', b'{"a":{"\xed\xa0\x80":1}}'])
async def test_preferences_that_are_no_utf8_are_unreadable(ada: Person, text: bytes) -> None:
    """Wherever in them it is."""
    body = b'{"preferences":' + text + b"}"
    assert_problem(await ada.client.post("/users", content=body), 400, "unreadable")
    await ada.profile()
    assert_problem(await ada.client.patch("/users/me", content=body), 400, "unreadable")


async def test_preferences_at_their_bounds(ada: Person) -> None:
    """64 KiB and 100 levels are taken, created and patched."""
    for text in (_nested(100), f'{{"a":"{"x" * (65_536 - 8)}"}}'):
        body = f'{{"preferences":{text}}}'
        await ada.client.post("/users", content='{"preferences":{}}')
        assert (await ada.client.patch("/users/me", content=body)).status_code == 200
        got = await ada.client.get("/users/me")
        assert f'"preferences":{text},' in got.text
        await ada.client.patch("/users/me", json={"preferences": None})


async def test_changes_at_once_are_all_kept(ada: Person) -> None:
    """No patch undoes another that came between."""
    await ada.profile()
    replies = await asyncio.gather(
        *(
            ada.client.patch("/users/me", json={"preferences": {f"k{number}": number}})
            for number in range(6)
        )
    )
    assert [reply.status_code for reply in replies] == [200] * 6
    got = (await ada.client.get("/users/me")).json()
    assert got["preferences"] == {f"k{number}": number for number in range(6)}


async def test_someone_else_and_nobody_are_answered_alike(ada: Person, bob: Person) -> None:
    """By every route that names a user, with good bodies and bad ones, keys and without."""
    before = (await bob.client.get("/users/me")).content
    for method, body in (
        ("GET", None),
        ("PATCH", {"name": "mine"}),
        ("PATCH", {"name": ""}),
        ("PATCH", {"nothing": 1}),
        ("DELETE", None),
    ):
        for headers in ({}, {"idempotency-key": "k"}, {"if-match": '"1"'}):
            replies = [
                await ada.client.request(
                    method,
                    f"/users/{name}",
                    json=body,
                    headers=headers
                    | ({"idempotency-key": name} if "idempotency-key" in headers else {}),
                )
                for name in (bob.sub, "nobody", f"{bob.sub}%00", "ME", "a%2Fb")
            ]
            assert same(*replies).status_code in {404, 422}
            assert SECRET.encode() not in replies[0].content
    assert (await bob.client.get("/users/me")).content == before


async def test_a_subject_of_any_characters(service: Service) -> None:
    """Is one's own under its name, escaped, and the location says so."""
    async with person(service, sub="a/b ü?#日%2F") as odd:
        made = await odd.client.post("/users", json={})
        assert made.status_code == 201
        assert made.json()["user_id"] == odd.sub
        assert (await odd.client.get(made.headers["location"])).content == made.content
        await odd.client.delete("/users/me")
