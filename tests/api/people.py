"""Callers for tests of what is everyone's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from tests.api.conftest import Service
from tests.api.serving import client_of


@dataclass(frozen=True, slots=True)
class Person:
    """A caller and its client."""

    sub: str
    client: httpx.AsyncClient

    async def report(self, **fields: Any) -> dict[str, Any]:
        """Creates a report; its body."""
        reply = await self.client.post("/reports", json={"title": "a report", **fields})
        assert reply.status_code == 201, reply.text
        made: dict[str, Any] = reply.json()
        return made

    async def profile(self, **fields: Any) -> dict[str, Any]:
        """Creates the profile; its body."""
        reply = await self.client.post("/users", json=fields)
        assert reply.status_code == 201, reply.text
        made: dict[str, Any] = reply.json()
        return made


@asynccontextmanager
async def person(service: Service, *groups: str, sub: str | None = None) -> AsyncIterator[Person]:
    """A caller whom no other test has, unless named."""
    sub = sub or str(uuid4())
    async with client_of(service.app, service.pool.token(*groups, sub=sub)) as client:
        yield Person(sub, client)


def same(*replies: httpx.Response) -> httpx.Response:
    """Checks that the answers are the same to the byte, but for their request ids."""
    first, *others = replies
    for other in others:
        assert other.status_code == first.status_code, (first.text, other.text)
        assert other.content == first.content
        assert _headers(other) == _headers(first)
    return first


def _headers(reply: httpx.Response) -> list[tuple[str, str]]:
    return sorted(pair for pair in reply.headers.multi_items() if pair[0] != "x-request-id")
