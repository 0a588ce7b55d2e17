"""Requests that take long: bodies that arrive slowly or never, and searches on threads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from api.admission.quotas import Admission
from api.app import create_app
from api.entrypoint import Entrypoint
from core.settings import Http
from tests.api.conftest import MODEL, Service
from tests.api.serving import client_of, eventually, path_of, started

SEARCH = path_of(MODEL, "search")
QUESTION = {"product_id": "plain"}


@asynccontextmanager
async def limited(
    service: Service, serving: dict[str, Any] | None = None, **http: Any
) -> AsyncIterator[Entrypoint]:
    """A second process with limits of its own, on the same tables."""
    settings = msgspec.structs.replace(
        service.settings,
        http=msgspec.structs.replace(Http(metrics_port=0), **http),
        serving=msgspec.structs.replace(service.settings.serving, **(serving or {})),
    )
    app = create_app(settings, service.resources)
    async with started(app), client_of(app, service.pool.token()) as client:
        await eventually(client, MODEL)
        yield app


@asynccontextmanager
async def caller(
    service: Service, app: Entrypoint, sub: str, *groups: str
) -> AsyncIterator[httpx.AsyncClient]:
    """One of several callers."""
    async with client_of(app, service.pool.token(*groups, sub=sub)) as client:
        yield client


def admission(app: Entrypoint) -> Admission:
    """What the process has taken on."""
    assert app.context is not None
    return app.context.admission


def all_given_back(app: Entrypoint) -> None:
    """Checks that nothing is held once all requests are answered."""
    has = admission(app)
    for share in (has.reads, has.calls, has.arriving, has.buffered, has.searches, has.work):
        assert share.in_use == 0, share.name
    assert has.waits.in_use == has.streams.in_use == 0


class Held:
    """Requests whose bodies stay away, after the first bytes, until they are let go."""

    def __init__(self) -> None:
        self._gate = asyncio.Event()
        self.tasks: list[asyncio.Task[httpx.Response]] = []

    def post(
        self,
        client: httpx.AsyncClient,
        path: str = SEARCH,
        first: bytes = b"{",
        rest: bytes = b'"product_id": "plain"}',
        **headers: str,
    ) -> "asyncio.Task[httpx.Response]":
        """Sends the first part of a body."""

        async def body() -> AsyncIterator[bytes]:
            yield first
            await self._gate.wait()
            yield rest

        named = {name.replace("_", "-"): value for name, value in headers.items()}
        task = asyncio.create_task(client.post(path, content=body(), headers=named))
        self.tasks.append(task)
        return task

    async def let_go(self) -> list[int]:
        """Sends the rest of all bodies; the statuses of their answers."""
        self._gate.set()
        return [reply.status_code for reply in await asyncio.gather(*self.tasks)]


async def until(holds: Any) -> None:
    """Waits until something holds that no event tells of."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
