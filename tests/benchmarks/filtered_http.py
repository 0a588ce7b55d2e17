"""Filtered searches over HTTP, K9's API beside Chroma's server, by selectivity.

    python -m tests.benchmarks.filtered_http --file CATALOGUE.parquet
        --chroma ENVIRONMENT/bin/chroma [--rows 100000] [--turns 5] [--queries 100]
        [--selectivity 0.1 1 10 50 100] [--k 10 100]

The filters are those of `tests.benchmarks.filters`; queries are none of the rows. Both servers run
on one core, and are asked the same questions in JSON, one after the other over one connection, in
turns; K9 checks a token, and Chroma has none. Chroma has its own parameters. Printed are recall
against exact search over the rows that match, and milliseconds of one question as the client waits:
the median of the turns, and their range.
"""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np

from core.vectors.arrays import Doubles, Floats, json_floats, unit_rows
from tests.benchmarks.arguments import existing, site_parser
from tests.benchmarks.chroma import Chroma, running
from tests.benchmarks.filters import Asked, attributes_of, question, recall_of
from tests.benchmarks.http_search import ROOT, prepare, serving
from tests.benchmarks.published import read
from tests.benchmarks.sent import CLIENT_CORE, MODEL, queries_of
from tests.emulators import CREDENTIALS
from tests.faults.site import open_site

Server = Callable[[Asked, int], Awaitable[list[str]]]
"""The ids found for one question, k at the most."""
_KINDS: Final = ("random", "region")


def k9(session: aiohttp.ClientSession, lines: list[list[float]]) -> Server:
    """K9's API."""

    async def search(asked: Asked, k: int) -> list[str]:
        body = {"vector": lines[asked.number], "k": k, "filter": asked.filter}
        data = msgspec.json.encode(body)
        async with session.post(f"/models/{MODEL}/search", data=data) as reply:
            raw = await reply.read()
            if reply.status != 200:
                raise SystemExit(f"K9 answers {reply.status}: {raw[:500]!r}")
        return [hit["product_id"] for hit in msgspec.json.decode(raw)["neighbors"]]

    return search


def chroma(server: Chroma, path: str, lines: list[list[float]]) -> Server:
    """Chroma's server."""

    async def search(asked: Asked, k: int) -> list[str]:
        body: dict[str, Any] = {
            "query_embeddings": [lines[asked.number]],
            "n_results": k,
            "include": ["distances"],
            "where": asked.filter,
        }
        found: list[str] = (await server.call("POST", f"{path}/query", body))["ids"][0]
        return found

    return search


async def line_of(
    servers: dict[str, Server],
    asked: list[Asked],
    k: int,
    turns: int,
    recall: Callable[[list[list[str]]], float],
) -> str:
    """Recall and milliseconds of each server; the first turn warms up."""
    spent: dict[str, list[float]] = {name: [] for name in servers}
    recalls = {}
    for turn in range(turns + 1):
        for name in servers if turn % 2 else reversed(servers):
            began = perf_counter()
            found = [await servers[name](each, k) for each in asked]
            took = 1000 * (perf_counter() - began) / len(asked)
            if turn:
                spent[name].append(took)
            else:
                recalls[name] = recall(found)
    parts = [
        f"{recalls[name]:.3f} | {statistics.median(ms):.2f} ({min(ms):.2f} to {max(ms):.2f})"
        for name, ms in spent.items()
    ]
    one, other = (statistics.median(ms) for ms in spent.values())
    return " | ".join([*parts, f"{one / other:.2f}"])


async def measure(
    plan: argparse.Namespace,
    servers: dict[str, Server],
    names: list[str],
    scores: Floats,
    attributes: dict[str, Doubles],
) -> None:
    """All lines of the table."""
    row_of = {name: row for row, name in enumerate(names)}
    print(f"{len(names):,} rows, {plan.queries} queries, {plan.turns} turns")
    heads = " | ".join(f"{name}: recall | ms" for name in servers)
    print(f"| filter, rows allowed | k | {heads} | ratio |")
    for k in plan.k:
        for kind in _KINDS:
            for share in plan.selectivity:
                asked = [question(kind, share / 100, number) for number in range(plan.queries)]

                def recall(found: list[list[str]], asked: list[Asked] = asked, k: int = k) -> float:
                    rows = [[row_of[name] for name in each] for each in found]
                    return recall_of(asked, k, scores, attributes, rows)

                line = await line_of(servers, asked, k, plan.turns, recall)
                print(f"| {kind}, {share:g} % | {k} | {line} |", flush=True)


async def main(plan: argparse.Namespace) -> int:
    """Fills both, measures in turns, and prints; the exit status."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    units = unit_rows(np.stack(list(rows.values())))
    attributes = attributes_of(units)
    queries = unit_rows(queries_of(rows)[: plan.queries])
    lines = [json_floats(query) for query in queries]
    command: Path = plan.chroma
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        await prepare(site, rows, ROOT, attributes)
        async with (
            running(site, command, site.directory / "chroma") as other,
            serving(site, "now", ROOT) as port,
        ):
            await other.fill(rows, attributes)
            os.sched_setaffinity(0, {CLIENT_CORE})
            headers = {
                "Authorization": f"Bearer {site.pool.token()}",
                "Content-Type": "application/json",
            }
            async with aiohttp.ClientSession(
                f"http://127.0.0.1:{port}", headers=headers
            ) as session:
                servers = {
                    "K9": k9(session, lines),
                    "Chroma": chroma(other, await other.path(), lines),
                }
                await measure(plan, servers, list(rows), queries @ units.T, attributes)
    return 0


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=5)
    parser.add_argument("--chroma", type=existing, required=True, help="its command")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    shares = [0.1, 1, 10, 50, 100]
    parser.add_argument("--selectivity", type=float, nargs="+", default=shares, help="percent")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
