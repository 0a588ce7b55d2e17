"""Users, reports, idempotency keys and cursors, used through both releases."""

import asyncio
from typing import Any, Final
from uuid import uuid4

import httpx
import numpy as np

from tests.upgrade.catalogue import MODEL, store
from tests.upgrade.environment import Environment, code, until
from tests.upgrade.ledger import Ledger

QUIET: Final = "quiet"
OTHER: Final = {"old": "new", "new": "old"}
_GONE_S: Final = 90.0
_STILL_S: Final = 4.0
"""How long a worker that must not act is watched: several of its rounds."""


async def profiles(environment: Environment, ledger: Ledger, first: str) -> str:
    """A profile that one release creates is read and changed through the other, and back."""
    second, sub = OTHER[first], f"user-{uuid4().hex[:8]}"
    one = environment.client(first, sub, operator=False)
    other = environment.client(second, sub, operator=False)
    body = {"name": "Ann", "preferences": {"a": 1.50, "deep": [1e300]}}
    made = code(await one.post("/users", json=body), httpx.codes.CREATED).json()
    assert code(await other.get("/users/me"), httpx.codes.OK).json() == made
    code(await other.post("/users", json=body), httpx.codes.CONFLICT)
    changed = code(await other.patch("/users/me", json={"name": "Bea"}), httpx.codes.OK).json()
    again = code(
        await one.patch("/users/me", json={"preferences": {"b": 2}}), httpx.codes.OK
    ).json()
    assert (again["name"], changed["name"]) == ("Bea", "Bea")
    assert code(await other.get("/users/me"), httpx.codes.OK).json() == again
    ledger.users[sub] = again
    return f"created by {first}, changed by {second} and {first}"


async def etags(environment: Environment, ledger: Ledger, first: str) -> str:
    """An ETag of one release is honoured by the other; a stale one is refused."""
    second, sub = OTHER[first], f"user-{uuid4().hex[:8]}"
    one = environment.client(first, sub, operator=False)
    other = environment.client(second, sub, operator=False)
    made = code(await one.post("/reports", json={"title": "T"}), httpx.codes.CREATED)
    path, tag = made.headers["location"], made.headers["etag"]
    assert (await other.get(path)).headers["etag"] == tag
    changed = code(
        await other.patch(path, json={"title": "U"}, headers={"if-match": tag}), httpx.codes.OK
    )
    stale = {"if-match": tag}
    for client in (one, other):
        code(
            await client.patch(path, json={"title": "V"}, headers=stale),
            httpx.codes.PRECONDITION_FAILED,
        )
        code(await client.delete(path, headers=stale), httpx.codes.PRECONDITION_FAILED)
    assert (await one.get(path)).json() == changed.json()
    ledger.reports[sub, changed.json()["id"]] = changed.json()
    gone = code(await one.post("/reports", json={"title": "gone"}), httpx.codes.CREATED)
    fresh = {"if-match": gone.headers["etag"]}
    code(await other.delete(gone.headers["location"], headers=fresh), httpx.codes.NO_CONTENT)
    code(await one.get(gone.headers["location"]), httpx.codes.NOT_FOUND)
    return f"of {first} at {second}: changed, deleted; stale: 412 at both"


_WRITES: Final[tuple[tuple[str, str, Any], ...]] = (
    ("POST", "/reports", {"title": "once", "favorites": ["p/1", "ü"]}),
    ("POST", "/users", {"name": "once"}),
    ("PATCH", "/users/me", {"name": "twice"}),
    ("PUT", f"/models/{MODEL}/embeddings/k%2Fey%20%C3%BC", None),
    ("POST", f"/models/{MODEL}/embeddings:batch", None),
    ("POST", "/reports", {"title": ""}),
)
_SAME_HEADERS: Final = ("etag", "location", "x-watermark", "content-type")


async def keys_of_old(environment: Environment, ledger: Ledger) -> str:
    """A write that the old release answered is answered alike by the new one, and not repeated."""
    sub = f"user-{uuid4().hex[:8]}"
    old, new = environment.client("old", sub), environment.client("new", sub)
    replayed = 0
    for method, path, body in _WRITES:
        content = body if body is not None else _vectors_of(path, ledger)
        headers = {"idempotency-key": uuid4().hex}
        first = await old.request(method, path, json=content, headers=headers)
        again = await new.request(method, path, json=content, headers=headers)
        assert again.status_code == first.status_code, (first.text, again.text, path)
        assert again.content == first.content, (path, first.text, again.text)
        for name in _SAME_HEADERS:
            assert again.headers.get(name) == first.headers.get(name), (path, name)
        code(
            await new.request(method, path, json={"other": 1}, headers=headers),
            httpx.codes.UNPROCESSABLE_ENTITY,
        )
        replayed += 1
    reports = code(await new.get("/reports"), httpx.codes.OK).json()["items"]
    assert len(reports) == 1, reports
    ledger.reports[sub, reports[0]["id"]] = reports[0]
    ledger.users[sub] = code(await new.get("/users/me"), httpx.codes.OK).json()
    return f"{replayed} kinds of requests: same status, body, ETag, Location, X-Watermark"


async def keys_of_new(environment: Environment, ledger: Ledger) -> str:
    """A write that the new release answered has no second effect through the old one."""
    sub = f"user-{uuid4().hex[:8]}"
    old, new = environment.client("old", sub), environment.client("new", sub)
    statuses = set()
    for method, path, body in _WRITES:
        content = body if body is not None else _vectors_of(path, ledger)
        headers = {"idempotency-key": uuid4().hex}
        first = await new.request(method, path, json=content, headers=headers)
        statuses.add((await old.request(method, path, json=content, headers=headers)).status_code)
        again = await new.request(method, path, json=content, headers=headers)
        assert (again.status_code, again.content) == (first.status_code, first.content)
    assert statuses == {httpx.codes.CONFLICT}, statuses
    reports = code(await old.get("/reports"), httpx.codes.OK).json()["items"]
    assert len(reports) == 1, reports
    ledger.reports[sub, reports[0]["id"]] = reports[0]
    ledger.users[sub] = code(await old.get("/users/me"), httpx.codes.OK).json()
    return "the old release answers 409 (in flight), and the new one as before; one effect"


def _vectors_of(path: str, ledger: Ledger) -> dict[str, Any]:
    dimension = len(next(iter(ledger.rows[MODEL].values())))
    vector = np.random.default_rng(1).normal(size=dimension).astype(np.float32)
    if path.endswith(":batch"):
        names = [f"keyed-{number:03d}" for number in range(150)]
        for name in names:
            ledger.put(MODEL, name, vector)
        return {"embeddings": [{"product_id": name, "vector": vector.tolist()} for name in names]}
    ledger.put(MODEL, "k/ey ü", vector)
    return {"vector": vector.tolist()}


async def key_overwritten(environment: Environment, ledger: Ledger) -> str:
    """A batch replayed through the other release does not undo what was written since."""
    old, new = environment.client("old"), environment.client("new")
    dimension = len(next(iter(ledger.rows[MODEL].values())))
    before, after = np.full(dimension, 1, np.float32), np.full(dimension, 2, np.float32)
    entries = [{"product_id": f"again-{n:03d}", "vector": before.tolist()} for n in range(120)]
    headers = {"idempotency-key": uuid4().hex}
    path = f"/models/{MODEL}/embeddings:batch"
    code(await old.post(path, json={"embeddings": entries}, headers=headers), httpx.codes.OK)
    for entry in entries:
        ledger.put(MODEL, str(entry["product_id"]), before)
    code(await new.put(f"/models/{MODEL}/embeddings/again-000", json={"vector": after.tolist()}),
         httpx.codes.OK)  # fmt: skip
    ledger.put(MODEL, "again-000", after)
    code(await new.post(path, json={"embeddings": entries}, headers=headers), httpx.codes.OK)
    found = code(await old.get(f"/models/{MODEL}/embeddings/again-000"), httpx.codes.OK).json()
    assert found["vector"][0] == 2
    return "120 rows replayed; the one that was changed since kept its change"


async def store_quiet(environment: Environment) -> None:
    """A model version that nothing else writes to, through the old release."""
    rows = {f"q/{n:03d}": np.full(4, n + 1, np.float32) for n in range(60)}
    await store(environment.client("old"), QUIET, rows)


async def cursors(environment: Environment, first: str) -> str:
    """A list that begins at one release continues at the other, without gap or repetition."""
    second, sub = OTHER[first], f"user-{uuid4().hex[:8]}"
    one, other = environment.client(first, sub), environment.client(second, sub)
    for number in range(5):
        code(await one.post("/reports", json={"title": f"{number}"}), httpx.codes.CREATED)
    lists = {
        "/reports": "id",
        f"/models/{QUIET}/embeddings?vectors=false": "product_id",
        f"/models/{MODEL}/builds": "build_id",
        "/models": "model_version",
    }
    pages = 0
    for path, name in lists.items():
        limit = 10 if name == "product_id" else 1
        whole = await _walk(one, one, path, limit)
        mixed = await _walk(one, other, path, limit)
        assert [item[name] for item in mixed] == [item[name] for item in whole], path
        assert len(whole) > 1, path
        pages += -(-len(whole) // limit)
    return f"reports, embeddings, builds, models: {pages} pages, {first} and {second} in turns"


async def _walk(
    one: httpx.AsyncClient, other: httpx.AsyncClient, path: str, limit: int
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    joint = "&" if "?" in path else "?"
    cursor, turn = "", 0
    while True:
        client = (one, other)[turn % 2]
        reply = await client.get(f"{path}{joint}limit={limit}{cursor}")
        page = code(reply, httpx.codes.OK).json()
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor, turn = f"&cursor={page['next_cursor']}", turn + 1


async def _user_with_reports(environment: Environment, release: str) -> str:
    sub = f"user-{uuid4().hex[:8]}"
    client = environment.client(release, sub, operator=False)
    code(await client.post("/users", json={"name": "leaves"}), httpx.codes.CREATED)
    for number in range(12):
        code(await client.post("/reports", json={"title": f"{number}"}), httpx.codes.CREATED)
    return sub


async def deletion_left_alone(environment: Environment) -> str:
    """The old worker, alone, does not begin a deletion that the new API accepted; the new does.

    Then the profile is created again while the old worker runs, and loses nothing.
    """
    await environment.start("old-worker")
    await environment.stop("new-worker")
    sub = await _user_with_reports(environment, "new")
    new = environment.client("new", sub, operator=False)
    headers = {"idempotency-key": uuid4().hex}
    code(await new.delete("/users/me", headers=headers), httpx.codes.ACCEPTED)
    seen = len(environment.logged("old-worker", "user deleted"))
    await asyncio.sleep(_STILL_S)
    profile = code(await new.get("/users/me"), httpx.codes.OK).json()
    assert profile["deleting_at"]
    assert len(code(await new.get("/reports"), httpx.codes.OK).json()["items"]) == 12
    assert len(environment.logged("old-worker", "user deleted")) == seen
    await environment.start("new-worker")
    await _until_gone(new)
    code(await new.post("/users", json={"name": "came back"}), httpx.codes.CREATED)
    made = [
        code(await new.post("/reports", json={"title": f"later {n}"}), httpx.codes.CREATED)
        for n in range(8)
    ]
    await asyncio.sleep(_STILL_S)
    for reply in made:
        code(await new.get(reply.headers["location"]), httpx.codes.OK)
    code(await new.delete("/users/me", headers=headers), httpx.codes.ACCEPTED)  # replayed
    assert code(await new.get("/users/me"), httpx.codes.OK).json()["name"] == "came back"
    return f"untouched for {_STILL_S:g} s, deleted by the new worker; 8 later reports stayed"


async def deletion_by_new_worker(environment: Environment) -> str:
    """A deletion that the old API accepted is done by a new worker."""
    await environment.start("new-worker")
    await environment.stop("old-worker")
    sub = await _user_with_reports(environment, "old")
    old = environment.client("old", sub, operator=False)
    code(await old.delete("/users/me"), httpx.codes.ACCEPTED)
    await _until_gone(old)
    assert code(await old.get("/reports"), httpx.codes.OK).json()["items"] == []
    return "12 reports and the profile are gone"


async def pending_deletion(environment: Environment) -> str:
    """Marks a user at the new API and leaves it: the caller's id, for later."""
    sub = await _user_with_reports(environment, "new")
    client = environment.client("new", sub, operator=False)
    code(await client.delete("/users/me"), httpx.codes.ACCEPTED)
    return sub


async def gone(environment: Environment, release: str, sub: str) -> str:
    """A pending deletion is done at last."""
    await _until_gone(environment.client(release, sub, operator=False))
    return "done once a new worker ran again"


async def _until_gone(client: httpx.AsyncClient) -> None:
    async def is_gone() -> bool:
        return (await client.get("/users/me")).status_code == httpx.codes.NOT_FOUND

    await until(is_gone, _GONE_S)
