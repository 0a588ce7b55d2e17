"""How soon a written embedding is found, without a build.

    python -m tests.benchmarks.visible [--model minilm-l6-v2] [--writes 1000] [--min-watermark]

Against a running `make dev`, from its directory: each write is a new product, an overwrite or a
delete in turn, and then its own searches are sent until one shows it. Printed are p50, p99 and the
longest, from the moment that the write was answered; the write itself; and what the emulator takes
of it: a consistent read of one row, which is made once between a write and its showing. With
`--min-watermark` the first search asks for the write, and is the only one. The products it made are
deleted at the end.
"""

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from time import perf_counter
from typing import Any
from urllib.parse import quote

import aiohttp
import numpy as np

from core.dynamo.client import open_dynamo
from core.repositories.embeddings import EmbeddingRepository
from core.vectors.arrays import Floats
from deploy.cli.environment import api_access, enter

POOL = 20
"""Products that are written, overwritten and deleted over and over."""
GIVE_UP_S = 60.0


class Run:
    """One session with the API."""

    def __init__(self, session: aiohttp.ClientSession, model: str, dimension: int) -> None:
        self.session = session
        self.model = model
        self.dimension = dimension
        self.random = np.random.default_rng(11)
        self.there: dict[str, Floats] = {}
        self.write_s: list[float] = []
        self.visible_s: dict[str, list[float]] = {"new": [], "overwritten": [], "deleted": []}
        self.searches = 0
        self.fresh: set[Any] = set()

    async def step(self, number: int, *, asked: bool) -> None:
        """One write, and how long it takes to show."""
        product_id = f"visible-{number // 3 % POOL}"
        kind = ("new", "overwritten", "deleted")[number % 3]
        old = self.there.get(product_id)
        row = self.random.normal(size=self.dimension).astype(np.float32)
        path = f"/models/{self.model}/embeddings/{quote(product_id)}"
        began = perf_counter()
        if kind == "deleted":
            request = self.session.delete(path)
            query = old if old is not None else row
        else:
            request = self.session.put(path, json={"vector": row.tolist()})
            query = row
        async with request as reply:
            reply.raise_for_status()
            token = reply.headers["X-Watermark"]
        answered = perf_counter()
        self.write_s.append(answered - began)
        if kind == "deleted":
            self.there.pop(product_id, None)
        else:
            self.there[product_id] = row
        body: dict[str, Any] = {"vector": query.tolist(), "k": 1}
        if asked:
            body["min_watermark"] = token
        while True:
            async with self.session.post(f"/models/{self.model}/search", json=body) as reply:
                reply.raise_for_status()
                answer = await reply.json()
            self.searches += 1
            self.fresh.add(answer["index"]["fresh"])
            first = answer["neighbors"][0]["product_id"]
            if (first != product_id) == (kind == "deleted"):
                break
            if asked or perf_counter() - answered > GIVE_UP_S:
                raise SystemExit(f"write {number} ({kind}) does not show: fresh {self.fresh}")
            await asyncio.sleep(0.001)
        self.visible_s[kind].append(perf_counter() - answered)


def line(name: str, seconds: Sequence[float]) -> str:
    """p50, p99 and the longest, in milliseconds."""
    ordered = sorted(seconds)
    p50 = statistics.median(ordered)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return (
        f"{name:<32} p50 {1e3 * p50:8.2f} ms   p99 {1e3 * p99:8.2f} ms   "
        f"max {1e3 * ordered[-1]:8.2f} ms   n {len(ordered)}"
    )


async def main(model: str, writes: int, *, asked: bool) -> None:
    """Writes, waits, and prints."""
    settings, stack = enter()
    url, token = await api_access(settings, stack, os.environ)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        async with session.get(f"/models/{model}") as reply:
            reply.raise_for_status()
            known = await reply.json()
        run = Run(session, model, known["dimension"])
        for number in range(writes):
            await run.step(number, asked=asked)
        for product_id in run.there:
            await session.delete(f"/models/{model}/embeddings/{quote(product_id)}")
    read_s = []
    async with open_dynamo(settings) as dynamo:
        rows = EmbeddingRepository(dynamo, settings)
        for number in range(min(writes, 200)):
            began = perf_counter()
            await rows.read_rows(model, [f"visible-{number % POOL}"])
            read_s.append(perf_counter() - began)
    print(f"{model}: {known['current_build']['rows']} rows in the index, {run.searches} searches")
    print(line("write, until it is answered", run.write_s))
    everything = [seconds for kind in run.visible_s.values() for seconds in kind]
    print(line("from there until it shows", everything))
    for kind, seconds in run.visible_s.items():
        if seconds:
            print(line(f"  {kind}", seconds))
    print(line("of that the emulator: one read", read_s))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--min-watermark", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.model, arguments.writes, asked=arguments.min_watermark))
