"""The application in this process, and a client that speaks to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import numpy as np

from api.entrypoint import Entrypoint
from core.queue import BuildJob
from core.resources import Resources
from core.vectors.arrays import Floats
from tests.forked_builds import forked_builds
from worker.building.attempt import BuildAttempt

DIMENSION = 8
IDS = (
    "plain",
    "with/slash",
    "with space",
    "100%",
    "%2F",
    "a//b",
    "Grüße-日本-🐍",
    "ü" * 256,
    "?query#fragment",
    "embeddings:batch",
)
"""Product ids that a path, a router or a decoder could trip over."""


def vector(seed: int, dimension: int = DIMENSION) -> Floats:
    """A vector, the same for the same seed."""
    made: Floats = np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    return made


def path_of(model_version: str, *segments: str) -> str:
    """A path under a model version, escaped as a client escapes it."""
    return "/".join(["/models", model_version, *(quote(part, safe="") for part in segments)])


@asynccontextmanager
async def started(app: Entrypoint) -> AsyncIterator[Entrypoint]:
    """The application between its start and its stop, as a server drives it."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    scope: Any = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    running = asyncio.create_task(app(scope, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    message = await outbox.get()
    assert message["type"] == "lifespan.startup.complete", message
    try:
        yield app
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        message = await outbox.get()
        await running
        assert message["type"] == "lifespan.shutdown.complete", message


@asynccontextmanager
async def client_of(app: Entrypoint, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started application, with a token on each request."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    plain: Any = app  # ASGI, as httpx types it and as Litestar does, are the same by other names
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(plain), base_url="http://k9.test", headers=headers, timeout=30
    ) as client:
        yield client


@asynccontextmanager
async def own_model(resources: Resources) -> AsyncIterator[str]:
    """The name of a model version of a test's own, which no list has after the test.

    Applications of other tests read the list ten times a second, and load what is published.
    """
    model = f"z-{uuid4().hex[:12]}"
    try:
        yield model
    finally:
        await resources.dynamo.call(
            "delete_item",
            TableName=resources.settings.table("models"),
            Key={"model_version": {"S": model}},
        )


async def eventually(client: httpx.AsyncClient, *models: str, seconds: float = 30) -> None:
    """Waits until the application is ready, and has these model versions loaded."""
    async with asyncio.timeout(seconds):
        for _ in iter(int, 1):
            reply = await client.get("/health/ready")
            if reply.status_code == httpx.codes.OK and set(models) <= set(reply.json()["loaded"]):
                return
            await asyncio.sleep(0.02)


async def caught_up(
    client: httpx.AsyncClient, model: str, product_id: str, seconds: float = 30
) -> int:
    """Waits until what changed since the build is read; how many rows that is."""
    async with asyncio.timeout(seconds):
        for _ in iter(int, 1):
            reply = await client.post(path_of(model, "search"), json={"product_id": product_id})
            fresh: int | None = reply.json().get("index", {}).get("fresh")
            if fresh is not None:
                return fresh
            await asyncio.sleep(0.02)
    raise AssertionError("the loop above has no end")


async def build_here(resources: Resources, build_id: str) -> None:
    """Does a worker's job."""
    build = await resources.builds.get_build(build_id)
    attempt = await BuildAttempt.claim(resources, BuildJob(build.build_id, build.fence))
    assert attempt is not None
    with forked_builds():
        await attempt.run()


def assert_problem(reply: httpx.Response, status: int, kind: str | None = None) -> Any:
    """Checks that the answer is a problem detail of that status; its body."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    if kind is not None:
        assert body["type"] == kind
    assert reply.headers["x-request-id"]
    return body
