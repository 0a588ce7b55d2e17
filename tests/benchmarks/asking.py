"""Clients that ask the same questions over and over, and what they were answered."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final
from urllib.parse import quote

import aiohttp
import msgspec
import numpy as np

from api.wire.search import Found, IndexUsed
from core.vectors.arrays import Floats
from tests.benchmarks.stock import Catalogue

K: Final = 10
_MSGPACK: Final = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
_decode_packed: Final = msgspec.msgpack.Decoder(Found).decode
_decode_text: Final = msgspec.json.Decoder(Found).decode

Hits = tuple[tuple[str, float], ...]
"""Product ids and scores, nearest first."""
Given = tuple[IndexUsed, Hits]
"""What an answer says of the index that gave it, and its hits."""


class Question(msgspec.Struct, frozen=True):
    """A search by vector in msgpack, or a request for a product's neighbours."""

    path: str
    vector: Floats | None = None
    """float32 (d,), of a search."""
    product_id: str = ""
    """Whose neighbours are asked for."""


def questions_of(model: str, before: Catalogue, after: Catalogue, count: int) -> list[Question]:
    """As many searches as requests for neighbours, all of them where rows have changed.

    A search is for a point close to where a row was, and neighbours are those of the row that was
    next to it, and is still there.
    """
    order = np.random.default_rng(5)
    changed = [name for name, row in before.items() if not np.array_equal(row, after.get(name, 0))]
    kept = [name for name in before if name in after and after[name] is before[name]]
    chosen = order.choice(changed, count // 2).tolist()
    near = np.stack([before[name] for name in chosen]) @ np.stack([before[i] for i in kept]).T
    made = []
    for name, place in zip(chosen, near.argmax(axis=1).tolist(), strict=True):
        aside = before[kept[order.integers(len(kept))]]
        vector = np.float32(0.9) * before[name] + np.float32(0.1) * aside
        made.append(Question(f"/models/{model}/search", vector=vector))
        path = f"/models/{model}/products/{quote(kept[place], safe='')}/neighbors?k={K}"
        made.append(Question(path, product_id=kept[place]))
    return made


class Asked(msgspec.Struct, frozen=True, gc=False):
    """One request."""

    began: float
    ended: float
    """Both by `perf_counter`."""
    status: int
    """0 where there was no answer."""
    build_id: str


class Clients:
    """A number of clients on connections of their own, in one event loop."""

    def __init__(
        self, session: aiohttp.ClientSession, questions: list[Question], think_s: float
    ) -> None:
        self._session = session
        self._questions = questions
        self._bodies = [
            None
            if q.vector is None
            else msgspec.msgpack.encode({"vector": q.vector.tobytes(), "k": K})
            for q in questions
        ]
        self._think_s = think_s
        self.resting = False
        """Nobody asks for now."""
        self.asked: list[Asked] = []
        self.failures: Counter[str] = Counter()
        self.given: Counter[tuple[int, IndexUsed, Hits]] = Counter()
        """How often each answer came to each question."""
        self.last_of: dict[str, float] = {}
        """When the last answer of a build came."""

    async def all_once(self) -> list[Given]:
        """The answer to each question, one after the other."""
        found = []
        for number in range(len(self._questions)):
            _, given = await self._ask(number)
            if given is None:
                raise SystemExit(f"no answer at rest: {dict(self.failures)}")
            found.append(given)
        return found

    @contextmanager
    def asking(self, clients: int) -> Iterator[None]:
        """Lets so many clients ask until the end of the block."""
        tasks = [asyncio.create_task(self._client(seed)) for seed in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _client(self, seed: int) -> None:
        order = random.Random(seed)
        while True:
            if self.resting:
                await asyncio.sleep(0.1)
                continue
            number = order.randrange(len(self._questions))
            asked, given = await self._ask(number)
            self.asked.append(asked)
            if given is not None:
                self.given[number, *given] += 1
                self.last_of[asked.build_id] = asked.ended
            if self._think_s:
                await asyncio.sleep(order.uniform(0, 2 * self._think_s))

    async def _ask(self, number: int) -> tuple[Asked, Given | None]:
        path, body = self._questions[number].path, self._bodies[number]
        searched = body is not None
        began = perf_counter()
        try:
            if searched:
                request = self._session.post(path, data=body, headers=_MSGPACK)
            else:
                request = self._session.get(path)
            async with request as reply:
                raw = await reply.read()
        except (aiohttp.ClientError, OSError) as error:
            self.failures[type(error).__name__] += 1
            return Asked(began, perf_counter(), 0, ""), None
        ended = perf_counter()
        if reply.status != 200:
            self.failures[f"{reply.status} {raw[:200].decode(errors='replace')}"] += 1
            return Asked(began, ended, reply.status, ""), None
        found = (_decode_packed if searched else _decode_text)(raw)
        hits = tuple((hit.product_id, hit.score) for hit in found.neighbors)
        return Asked(began, ended, 200, found.index.build_id), (found.index, hits)

    def seconds(self, since: float, until: float) -> list[float]:
        """How long those requests took that were in flight at any moment of a time."""
        return [a.ended - a.began for a in self.asked if a.began < until and a.ended > since]
