"""How soon a written embedding is found, without a build.

    python -m tests.benchmarks.visible [--file CATALOGUE.parquet] [--rows 5000] [--writes 1000]
        [--min-watermark] [--without-valkey]

On an emulator, a Valkey, a worker and an API of its own, with an index of so many rows. Each write
is a new product, an overwrite or a delete in turn, and then its own searches are sent until one
shows it. Printed are p50, p99 and the longest, from the moment that the write was answered; the
write itself; and what the emulator takes of it: a consistent read of one row, which is made once
between a write and its showing. With `--min-watermark` the first search asks for the write, and is
the only one. With `--without-valkey` no hint is heard, and the slow poll has to find each row: it
is set to 3 s, and nothing may take longer than two polls.
"""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import quote

import aiohttp
import numpy as np

from core.vectors.arrays import Floats
from tests.benchmarks.published import SAMPLE, read
from tests.benchmarks.stock import published, store
from tests.emulators import CREDENTIALS
from tests.faults.site import open_site

MODEL = "visible"
POOL = 20
"""Products that are written, overwritten and deleted over and over."""
GIVE_UP_S = 60.0
POLL_S = 3.0


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

    async def ready(self, build_id: str) -> None:
        """Waits until a build answers, with what changed since it read."""
        body = {"vector": [1.0] * self.dimension, "k": 1}
        async with asyncio.timeout(300):
            while True:
                try:
                    async with self.session.post(f"/models/{self.model}/search", json=body) as got:
                        index = (await got.json()).get("index", {})
                except aiohttp.ClientConnectionError:  # the API has not begun
                    index = {}
                if index.get("build_id") == build_id and index["fresh"] is not None:
                    return
                await asyncio.sleep(0.1)

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


async def main(plan: argparse.Namespace) -> bool:
    """Stores, builds, writes, waits, and prints; whether the poll's bound held."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    async with open_site(K9_POLL_S=f"{POLL_S:g}" if plan.without_valkey else "30") as site:
        resources = site.resources
        await store(resources, MODEL, rows)
        build = await published(resources, MODEL)
        headers = {"Authorization": f"Bearer {site.pool.token('operators')}"}
        async with aiohttp.ClientSession(site.api_url, headers=headers) as session:
            run = Run(session, MODEL, len(next(iter(rows.values()))))
            await run.ready(build.build_id)
            if plan.without_valkey:
                await site.parts["valkey"].stop()
            for number in range(plan.writes):
                await run.step(number, asked=plan.min_watermark)
        read_s = []
        for number in range(200):
            began = perf_counter()
            await resources.embeddings.read_rows(MODEL, [f"visible-{number % POOL}"])
            read_s.append(perf_counter() - began)
    return report(run, len(rows), read_s, bounded=plan.without_valkey)


def report(run: Run, rows: int, read_s: list[float], *, bounded: bool) -> bool:
    """Prints the figures; whether the poll's bound held, where there is one."""
    print(f"{rows:,} rows in the index, {run.searches:,} searches")
    print(line("write, until it is answered", run.write_s))
    everything = [seconds for kind in run.visible_s.values() for seconds in kind]
    print(line("from there until it shows", everything))
    for kind, seconds in run.visible_s.items():
        if seconds:
            print(line(f"  {kind}", seconds))
    print(line("of that the emulator: one read", read_s))
    if bounded:
        print(f"without Valkey, polled every {POLL_S:g} s: bound {2 * POLL_S:g} s")
    return not bounded or max(everything) <= 2 * POLL_S


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=SAMPLE)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--min-watermark", action="store_true")
    parser.add_argument("--without-valkey", action="store_true")
    os.environ |= CREDENTIALS
    sys.exit(not asyncio.run(main(parser.parse_args())))
