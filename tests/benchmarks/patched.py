"""How soon a changed attribute is filtered by.

    python -m tests.benchmarks.patched [--file CATALOGUE.parquet] [--rows 5000] [--writes 1000]
        [--min-watermark] [--writers 0]

On an emulator, a Valkey, a worker and an API of its own, with an index of so many rows that have
attributes. Each write is a PATCH of one price, and then searches that filter by the new one are
sent until one finds the product. Printed are p50, p99 and the longest, from the moment that the
write was answered; the write itself; and a search. With `--min-watermark` the first search asks for
the write, and is the only one. So many `--writers` change prices of other products meanwhile, one
after the other each, as fast as they are answered.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote

import aiohttp
import numpy as np

from core.attributes.values import Attributes
from tests.benchmarks.published import SAMPLE, read
from tests.benchmarks.stock import published
from tests.benchmarks.visible import GIVE_UP_S, line
from tests.emulators import CREDENTIALS
from tests.faults.site import open_site

MODEL = "patched"


def attributes_of(number: int) -> Attributes:
    """Ten attributes of a product, as a shop has them."""
    return {
        "brand": f"brand-{number % 500}",
        "category": f"category-{number % 32}",
        "color": ["red", "green", "blue", "black"][number % 4],
        "in_stock": number % 5 > 0,
        "price": number % 997 / 10,
        "rating": number % 51 / 10,
        "size": "SML"[number % 3],
        "stock": number % 40,
        "tags": ["new", "sale"] if number % 7 == 0 else ["new"],
        "title": f"Product {number} of a catalogue",
    }


class Run:
    """One session with the API."""

    def __init__(self, session: aiohttp.ClientSession, rows: dict[str, Any]) -> None:
        self.session = session
        self.ids = list(rows)
        self.rows = rows
        self.random = np.random.default_rng(11)
        self.write_s: list[float] = []
        self.visible_s: list[float] = []
        self.search_s: list[float] = []
        self.others = 0
        """Prices that writers changed."""

    async def patch(self, product_id: str, price: float) -> str:
        """Changes a price; the watermark."""
        path = f"/models/{MODEL}/embeddings/{quote(product_id, safe='')}"
        async with self.session.patch(path, json={"attributes": {"price": price}}) as reply:
            reply.raise_for_status()
            return reply.headers["X-Watermark"]

    async def search(self, **asked: Any) -> Any:
        """An answer."""
        began = perf_counter()
        async with self.session.post(f"/models/{MODEL}/search", json=asked) as reply:
            answer = await reply.json()
            if reply.status != 200:
                raise SystemExit(f"a search is answered {reply.status}: {answer}")
        self.search_s.append(perf_counter() - began)
        return answer

    async def ready(self, build_id: str) -> None:
        """Waits until a build answers, with what changed since it read."""
        vector = self.rows[self.ids[0]].tolist()
        async with asyncio.timeout(300):
            while True:
                try:
                    path = f"/models/{MODEL}/search"
                    async with self.session.post(path, json={"vector": vector}) as got:
                        index = (await got.json()).get("index", {})
                except aiohttp.ClientConnectionError:  # the API has not begun
                    index = {}
                if index.get("build_id") == build_id and index["fresh"] is not None:
                    return
                await asyncio.sleep(0.1)

    async def step(self, number: int, *, asked: bool) -> None:
        """One write, and how long it takes until a filter finds it."""
        product_id = self.ids[2 * int(self.random.integers(len(self.ids) // 2))]
        price = 1000.0 + number
        began = perf_counter()
        token = await self.patch(product_id, price)
        answered = perf_counter()
        self.write_s.append(answered - began)
        vector = self.rows[self.ids[number % len(self.ids)]].tolist()
        body: dict[str, Any] = {"vector": vector, "filter": {"price": price}}
        if asked:
            body["min_watermark"] = token
        while True:
            found = [hit["product_id"] for hit in (await self.search(**body))["neighbors"]]
            if found == [product_id]:
                break
            if found or asked or perf_counter() - answered > GIVE_UP_S:
                raise SystemExit(f"write {number} does not show: {found}, not {product_id}")
            await asyncio.sleep(0.001)
        self.visible_s.append(perf_counter() - answered)

    async def write_on(self, seed: int) -> None:
        """Changes prices of products that no step is about, until cancelled."""
        random = np.random.default_rng(seed)
        while True:
            number = 1 + 2 * int(random.integers((len(self.ids) - 1) // 2))
            await self.patch(self.ids[number], float(random.integers(1000)) / 10)
            self.others += 1


async def main(plan: argparse.Namespace) -> None:
    """Stores, builds, writes, waits, and prints."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    async with open_site() as site:
        resources = site.resources
        service = resources.embedding_service
        for start in range(0, len(rows), 1000):
            part = list(rows.items())[start : start + 1000]
            attributes = [attributes_of(start + number) for number in range(len(part))]
            await service.store_batch(MODEL, part, attributes=attributes)
        build = await published(resources, MODEL)
        headers = {"Authorization": f"Bearer {site.pool.token('operators')}"}
        async with aiohttp.ClientSession(site.api_url, headers=headers) as session:
            run = Run(session, rows)
            await run.ready(build.build_id)
            writers = [asyncio.create_task(run.write_on(seed)) for seed in range(plan.writers)]
            began = perf_counter()
            try:
                for number in range(plan.writes):
                    await run.step(number, asked=plan.min_watermark)
            finally:
                took = perf_counter() - began
                for writer in writers:
                    writer.cancel()
                await asyncio.gather(*writers, return_exceptions=True)
    print(f"{len(rows):,} rows in the index, {len(run.search_s):,} searches", end="")
    print(f", {run.others:,} other prices changed, {run.others / took:,.0f} a second")
    print(line("PATCH, until it is answered", run.write_s))
    print(line("from there until a filter finds it", run.visible_s))
    print(line("one filtered search", run.search_s))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=SAMPLE)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--min-watermark", action="store_true")
    parser.add_argument("--writers", type=int, default=0)
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(parser.parse_args())))
