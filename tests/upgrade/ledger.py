"""What was acknowledged, and whether all of it is there; and traffic that goes on meanwhile."""

import asyncio
import random
from collections import Counter
from typing import Any, Final
from uuid import uuid4

import httpx
import numpy as np

from tests.upgrade.catalogue import MODEL, Vectors
from tests.upgrade.environment import Environment, code

_RETRIED: Final = {409, 429, 500, 502, 503}
_PAUSE_S: Final = 0.05
_PAGE: Final = 100


class Ledger:
    """Writes that were answered with success."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Vectors]] = {MODEL: {}}
        """Model version → product → vector, of what was stored and not deleted."""
        self.deleted: dict[str, set[str]] = {MODEL: set()}
        self.unknown: set[tuple[str, str]] = set()
        """Rows whose last write was never answered: they may be as before, or as written."""
        self.users: dict[str, dict[str, Any]] = {}
        self.reports: dict[tuple[str, str], dict[str, Any]] = {}
        """Caller and id → the report as it was last answered."""

    def put(self, model: str, product_id: str, vector: Vectors) -> None:
        """Notes a stored row."""
        self.rows.setdefault(model, {})[product_id] = vector
        self.deleted.setdefault(model, set()).discard(product_id)
        self.unknown.discard((model, product_id))

    def delete(self, model: str, product_id: str) -> None:
        """Notes a deleted row."""
        self.rows[model].pop(product_id, None)
        self.deleted[model].add(product_id)
        self.unknown.discard((model, product_id))

    async def check(self, environment: Environment, release: str, *models: str) -> str:
        """Reads all of it through a release's API.

        Raises:
            AssertionError: something that was acknowledged is not there.
        """
        rows = 0
        for model in models or (MODEL,):
            wrong = await self._wrong_rows(environment, release, model)
            assert not wrong, f"{len(wrong)} rows of {model} are not as acknowledged: {wrong[:5]}"
            rows += len(self.rows[model])
        for (sub, report_id), expected in self.reports.items():
            client = environment.client(release, sub, operator=False)
            reply = code(await client.get(f"/reports/{report_id}"), httpx.codes.OK)
            assert reply.json() == expected, (reply.json(), expected)
        for sub, expected in self.users.items():
            client = environment.client(release, sub, operator=False)
            reply = code(await client.get("/users/me"), httpx.codes.OK)
            assert reply.json() == expected, (reply.json(), expected)
        return (
            f"{rows} rows, {len(self.reports)} reports, {len(self.users)} users through {release}"
        )

    async def _wrong_rows(self, environment: Environment, release: str, model: str) -> list[str]:
        found = await listed(environment, release, model)
        expected = self.rows[model]
        return [
            name
            for name in found.keys() | expected.keys()
            if (model, name) not in self.unknown
            and (
                name not in found
                or name not in expected
                or not np.array_equal(found[name], expected[name])
            )
        ]


async def listed(environment: Environment, release: str, model: str) -> dict[str, Vectors]:
    """All rows of a model version, as a release lists them."""
    client = environment.client(release)
    found: dict[str, Vectors] = {}
    cursor: dict[str, str] = {}
    while True:
        parameters = {"limit": str(_PAGE), **cursor}
        reply = await client.get(f"/models/{model}/embeddings", params=parameters)
        page = code(reply, httpx.codes.OK).json()
        for item in page["items"]:
            found[item["product_id"]] = np.array(item["vector"], dtype=np.float32)
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


class Traffic:
    """Writes through whichever APIs run, one after the other, until stopped.

    A request that is not answered, or answered with a transient error, is sent again under the same
    key, to any API that runs.
    """

    def __init__(self, environment: Environment, ledger: Ledger) -> None:
        self._environment = environment
        self._ledger = ledger
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.seen: Counter[str] = Counter()
        self._random = random.Random(3)
        self._vectors = np.random.default_rng(5)
        self._sub = f"traffic-{uuid4().hex[:8]}"

    def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> str:
        """Ends after the write in flight; what was seen."""
        self._stopping = True
        if self._task is not None:
            await self._task
        return ", ".join(f"{count} {name}" for name, count in sorted(self.seen.items()))

    async def _run(self) -> None:
        number = 0
        while not self._stopping:
            number += 1
            if number % 3 == 0:
                await self._report(number)
            else:
                await self._embedding(f"t-{self._random.randrange(400):03d}")
            await asyncio.sleep(_PAUSE_S)

    async def _report(self, number: int) -> None:
        body = {"title": f"of the traffic, {number}", "favorites": ["p/1", "p2"]}
        reply = await self._answered("POST", "/reports", json=body, key=uuid4().hex)
        if reply is None:
            return
        code(reply, httpx.codes.CREATED)
        self.seen["reports"] += 1
        self._ledger.reports[self._sub, reply.json()["id"]] = reply.json()

    async def _embedding(self, product_id: str) -> None:
        path = f"/models/{MODEL}/embeddings/{product_id}"
        exists = product_id in self._ledger.rows[MODEL]
        if exists and self._random.random() < 0.2:
            reply = await self._answered("DELETE", path)
            # 404: an earlier try of this deletion was not answered.
            if reply is not None:
                code(reply, httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND)
                self.seen["deletions"] += 1
                self._ledger.delete(MODEL, product_id)
                return
        else:
            dimension = len(next(iter(self._ledger.rows[MODEL].values())))
            vector = self._vectors.normal(size=dimension).astype(np.float32)
            reply = await self._answered("PUT", path, json={"vector": vector.tolist()})
            if reply is not None:
                code(reply, httpx.codes.OK, httpx.codes.CREATED)
                self.seen["rows put"] += 1
                self._ledger.put(MODEL, product_id, vector)
                return
        self._ledger.unknown.add((MODEL, product_id))

    async def _answered(
        self, method: str, path: str, *, json: Any = None, key: str | None = None
    ) -> httpx.Response | None:
        """The answer, of whichever API; None if there is none in a minute."""
        headers = {} if key is None else {"idempotency-key": key}
        loop = asyncio.get_running_loop()
        until = loop.time() + 60
        while loop.time() < until:
            apis = self._environment.apis
            if apis:
                operator = path.startswith("/models")
                release = self._random.choice(apis)
                client = self._environment.client(release, self._sub, operator=operator)
                try:
                    reply = await client.request(method, path, json=json, headers=headers)
                except httpx.TransportError:
                    self.seen[f"requests to {release} without an answer"] += 1
                else:
                    if reply.status_code not in _RETRIED:
                        return reply
                    self.seen[f"answers {reply.status_code}, sent again"] += 1
            await asyncio.sleep(_PAUSE_S)
        self.seen["writes given up"] += 1
        return None
