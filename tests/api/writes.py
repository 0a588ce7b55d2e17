"""One write of each kind, for what holds for all of them under an idempotency key."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest

from tests.api.conftest import Service
from tests.api.people import Person
from tests.api.serving import build_here, path_of, vector

Write = tuple[str, str, Any]
"""Method, path and body."""

BATCH = [{"product_id": f"b{n}", "vector": vector(n).tolist()} for n in range(250)]
PROMOTED = "k-promoted"
"""A model version with a published build."""


async def publish(service: Service) -> None:
    """Builds and publishes the one that is promoted, unless that was done."""
    builds = path_of(PROMOTED, "builds")
    if (await service.client.get(builds)).status_code == httpx.codes.OK:
        return
    await service.client.post(
        f"/models/{PROMOTED}/embeddings:batch", json={"embeddings": BATCH[:30]}
    )
    reply = await service.client.post(builds, json={"matrix_k": 3})
    await build_here(service.resources, reply.json()["build_id"])


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


async def put_embedding(_caller: Person, model: str) -> Write:
    """The first write of a model version."""
    return "PUT", path_of(model, "embeddings", "a/b"), {"vector": vector(1).tolist()}


async def delete_embedding(caller: Person, model: str) -> Write:
    """Of one that is there."""
    method, path, body = await put_embedding(caller, model)
    await caller.client.request(method, path, json=body)
    return "DELETE", path, None


async def patch_attributes(caller: Person, model: str) -> Write:
    """Of an embedding that has some."""
    method, path, body = await put_embedding(caller, model)
    await caller.client.request(method, path, json={**body, "attributes": {"a": 1, "b": 2}})
    return "PATCH", path, {"attributes": {"a": None, "c": ["x"]}}


async def _put_attributes(_caller: Person, model: str) -> Write:
    body = {"vector": vector(1).tolist(), "attributes": {"price": 9.5}}
    return "PUT", path_of(model, "embeddings", "a/b"), body


async def _store_attributes(_caller: Person, model: str) -> Write:
    entries = [{**entry, "attributes": {"n": n}} for n, entry in enumerate(BATCH[:120])]
    return "POST", f"/models/{model}/embeddings:batch", {"embeddings": entries}


async def store_batch(_caller: Person, model: str) -> Write:
    """Of more rows than fit into one transaction."""
    return "POST", f"/models/{model}/embeddings:batch", {"embeddings": BATCH}


async def request_build(caller: Person, model: str) -> Write:
    """Of a model version with one embedding."""
    await delete_embedding(caller, model)
    return "POST", path_of(model, "builds"), {"matrix_k": 3}


async def _cancel_build(caller: Person, model: str) -> Write:
    method, path, body = await request_build(caller, model)
    reply = await caller.client.request(method, path, json=body)
    return "DELETE", f"/builds/{reply.json()['build_id']}", None


async def _cancel_import(caller: Person, model: str) -> Write:
    body = {"upload": True, "content_length": 1, "sha256": "0" * 64}
    reply = await caller.client.post(path_of(model, "imports"), json=body)
    return "DELETE", f"/imports/{reply.json()['import_id']}", None


async def _delete_model(caller: Person, model: str) -> Write:
    method, path, body = await put_embedding(caller, model)
    await caller.client.request(method, path, json=body)
    return "DELETE", path_of(model), None


async def _change_model(caller: Person, model: str) -> Write:
    method, path, body = await put_embedding(caller, model)
    await caller.client.request(method, path, json=body)
    return "PATCH", path_of(model), {"internal_attributes": ["cost"]}


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
    "PUT embedding": (put_embedding, 201),
    "PUT attributes": (_put_attributes, 201),
    "PATCH embedding": (patch_attributes, 200),
    "DELETE embedding": (delete_embedding, 204),
    "POST batch": (store_batch, 200),
    "POST batch of attributes": (_store_attributes, 200),
    "POST builds": (request_build, 202),
    "DELETE build": (_cancel_build, 202),
    "PATCH model": (_change_model, 200),
    "DELETE import": (_cancel_import, 202),
    "DELETE model": (_delete_model, 202),
    "POST promote": (_promote_build, 200),
}
every_write = pytest.mark.parametrize(("prepare", "status"), ALL.values(), ids=ALL)


async def send(caller: Person, write: Write, key: str | None = "key") -> httpx.Response:
    """Sends a write under a key."""
    method, path, body = write
    headers = {} if key is None else {"idempotency-key": key}
    content = b"" if body is None else msgspec.json.encode(body)
    return await caller.client.request(method, path, content=content, headers=headers)


async def state(caller: Person, model: str) -> list[Any]:
    """All that a write could have changed, as the caller sees it."""
    seen: list[Any] = [(await caller.client.get("/users/me")).content]
    own = [path_of(model, each) for each in ("builds", "imports", "embeddings")]
    for path in ("/reports", *own):
        cursor: dict[str, str] | None = {}
        while cursor is not None:
            page = (await caller.client.get(path, params={"limit": "100"} | cursor)).json()
            seen += page.get("items", [])
            further = page.get("next_cursor")
            cursor = {"cursor": further} if further else None
    return seen
