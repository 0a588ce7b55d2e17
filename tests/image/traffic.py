"""Requests to several APIs through what a load balancer does: it asks each whether it is ready.

An API that is not ready gets no new requests; one in flight is waited for. Nothing is sent twice,
so that every request that fails counts.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final
from uuid import uuid4

import aiohttp

from deploy.local.sample import MODEL, PRODUCT

_CHECK_S: Final = 0.5
_CLIENTS: Final = 8
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)
_ROWS: Final = 50
_DIMENSION: Final = 8


class Traffic:
    """What was asked, and what failed."""

    def __init__(self, urls: list[str], token: str) -> None:
        self.answers: Counter[str] = Counter()
        """By kind of request."""
        self.by_target: Counter[str] = Counter()
        self.failures: list[str] = []
        self._urls = urls
        self._ready: set[str] = set()
        self._all_ready = asyncio.Event()
        self._token = token
        self._numbers = count()
        self._stopping = False

    async def check(self, session: aiohttp.ClientSession, url: str) -> None:
        """Asks one API whether it is ready, again and again."""
        while True:
            try:
                async with session.get(f"{url}/health/ready", timeout=_TIMEOUT) as reply:
                    ready = reply.status == 200
            except (aiohttp.ClientError, OSError, TimeoutError):
                ready = False
            (self._ready.add if ready else self._ready.discard)(url)
            if self._ready == set(self._urls):
                self._all_ready.set()
            await asyncio.sleep(_CHECK_S)

    async def wait_until_ready(self) -> None:
        """Waits until every API is ready."""
        async with asyncio.timeout(60):
            await self._all_ready.wait()

    async def ask(self, session: aiohttp.ClientSession) -> None:
        """One client, which sends one request after another."""
        while not self._stopping:
            ready = [url for url in self._urls if url in self._ready]
            if not ready:
                self.failures.append("no API is ready")
                await asyncio.sleep(_CHECK_S)
                continue
            number = next(self._numbers)
            await self._ask_one(session, ready[number % len(ready)], number)

    async def _ask_one(self, session: aiohttp.ClientSession, url: str, number: int) -> None:
        name, method, path, body = _request(number)
        headers = {"authorization": f"Bearer {self._token}"}
        if method == "POST":
            headers["idempotency-key"] = uuid4().hex
        try:
            async with session.request(method, url + path, json=body, headers=headers) as reply:
                text = await reply.text()
                if reply.status >= 300:
                    self.failures.append(f"{name} at {url}: {reply.status} {text[:200]}")
                    return
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.failures.append(f"{name} at {url}: {error!r}")
            return
        self.answers[name] += 1
        self.by_target[url] += 1

    def stop(self) -> None:
        """Lets each client end with the request that it has."""
        self._stopping = True


def _request(number: int) -> tuple[str, str, str, Any]:
    """Searches for the most part, and writes whose loss would be noticed."""
    kind = number % 10
    if kind == 0:
        return "report", "POST", "/reports", {"title": f"Report {number}"}
    if kind == 1:
        rows = [
            {"product_id": f"p{number}-{row}", "vector": [1.0 + row] * _DIMENSION}
            for row in range(_ROWS)
        ]
        return "batch", "POST", "/models/traffic/embeddings:batch", {"embeddings": rows}
    if kind < 6:
        path = f"/models/{MODEL}/products/{PRODUCT}/neighbors?k=5"
        return "neighbours", "GET", path, None
    body = {"product_id": PRODUCT, "k": 10}
    return "search", "POST", f"/models/{MODEL}/search", body


@asynccontextmanager
async def traffic(urls: list[str], token: str) -> AsyncIterator[Traffic]:
    """Runs clients against the APIs until the end of the block.

    Raises:
        AssertionError: a request failed.
    """
    running = Traffic(urls, token)
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        checks = [asyncio.create_task(running.check(session, url)) for url in urls]
        clients: list[asyncio.Task[None]] = []
        try:
            await running.wait_until_ready()
            clients = [asyncio.create_task(running.ask(session)) for _ in range(_CLIENTS)]
            yield running
        finally:
            running.stop()
            await asyncio.gather(*clients)
            for check in checks:
                check.cancel()
            await asyncio.gather(*checks, return_exceptions=True)
    assert not running.failures, (
        f"{len(running.failures)} requests failed, such as {running.failures[:3]}"
    )
