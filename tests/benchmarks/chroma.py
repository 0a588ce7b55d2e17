"""Searches a second of K9 against Chroma's server, on the same core.

    python -m tests.benchmarks.chroma --file CATALOGUE.parquet --chroma ENVIRONMENT/bin/chroma
        [--rows 100000] [--turns 5] [--seconds 3]

chromadb is in an environment of its own. Both servers have the same rows and the same 20,000
distinct queries, none of them a row, in JSON; K9 is asked in msgpack too, which Chroma does not
take. K9 checks a token; Chroma has none. Each server runs on one core, and wrk (Debian's package)
with 16 connections on another, in turns. Both answer ids and scores (Chroma: distances).

Chroma is measured twice: with its own parameters, and with the least efSearch of `BREADTHS` whose
recall@10 reaches K9's target of 0.95; the ratios to reach are those to the second. Its graph is the
same in both: space cosine, all else as Chroma has it. A collection's efSearch is read when a server
starts, so each of the two has a server and a copy of the files. The recall of each is over the same
1,000 queries, against exact search over all rows.
"""

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np

from core.models import BuildParameters
from core.vectors.arrays import Doubles, Floats, json_floats
from tests.benchmarks.arguments import existing, site_parser
from tests.benchmarks.exact import QUERIES, K, Truth
from tests.benchmarks.figures import Report, at_least, number, ratios
from tests.benchmarks.http_search import ROOT, SERVER_CORE, prepare, serving
from tests.benchmarks.published import read
from tests.benchmarks.sent import (
    MODEL,
    Measured,
    Request,
    queries_of,
    requests_of,
    run_wrk,
    write_script,
)
from tests.benchmarks.stock import Catalogue
from tests.emulators import CREDENTIALS, free_port
from tests.faults.site import Part, Site, open_site

TO_REACH: Final = {"json": 4.8, "msgpack": 5.0}
BREADTHS: Final = (10, 15, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400, 600, 800)
TARGET: Final = BuildParameters().target_recall
_COLLECTIONS: Final = "/api/v2/tenants/default_tenant/databases/default_database/collections"
_NAME: Final = "rows"
_BATCH_ROWS: Final = 1000
_JSON: Final = (("Content-Type", "application/json"),)


class Chroma:
    """A running server of Chroma's."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self.port = port
        self._session = session

    async def call(self, method: str, path: str = "", body: Any = None) -> Any:
        """The answer to a request on collections; ends this process where it is an error."""
        data = None if body is None else msgspec.json.encode(body)
        call = self._session.request(method, f"{_COLLECTIONS}{path}", data=data)
        async with call as reply:
            raw = await reply.read()
            if reply.status >= 300:
                raise SystemExit(f"Chroma answers {reply.status}: {raw[:500]!r}")
        return msgspec.json.decode(raw) if raw else None

    async def path(self) -> str:
        """Of the collection."""
        return f"/{(await self.call('GET', f'/{_NAME}'))['id']}"

    async def fill(self, rows: Catalogue, attributes: dict[str, Doubles] | None = None) -> None:
        """Makes the collection, and stores the rows, with a number of each by name."""
        asked = {"name": _NAME, "configuration": {"hnsw": {"space": "cosine"}}}
        path = f"/{(await self.call('POST', body=asked))['id']}"
        ids = list(rows)
        for start in range(0, len(ids), _BATCH_ROWS):
            part = ids[start : start + _BATCH_ROWS]
            vectors = [json_floats(rows[name]) for name in part]
            body: dict[str, Any] = {"ids": part, "embeddings": vectors}
            if attributes is not None:
                body["metadatas"] = [
                    {name: float(values[row]) for name, values in attributes.items()}
                    for row in range(start, start + len(part))
                ]
            await self.call("POST", f"{path}/add", body)
        stored = await self.call("GET", f"{path}/count")
        if stored != len(ids):
            raise SystemExit(f"Chroma has {stored} of {len(ids)} rows")

    async def breadth(self) -> int:
        """The efSearch of the collection."""
        found = await self.call("GET", f"/{_NAME}")
        return int(found["configuration_json"]["hnsw"]["ef_search"])

    async def set_breadth(self, breadth: int) -> None:
        """From the next start of a server on."""
        asked = {"new_configuration": {"hnsw": {"ef_search": breadth}}}
        await self.call("PUT", await self.path(), asked)

    async def recall(self, truth: Truth) -> float:
        """Over the queries of `truth`."""
        path = f"{await self.path()}/query"
        found: list[list[str]] = []
        for start in range(0, len(truth.queries), _BATCH_ROWS // 4):
            part = truth.queries[start : start + _BATCH_ROWS // 4]
            found += (await self.call("POST", path, query([*map(json_floats, part)])))["ids"]
        return truth.recall(found)

    async def requests(self, queries: Floats) -> list[Request]:
        """A search by each vector."""
        path = f"{_COLLECTIONS}{await self.path()}/query"
        bodies = [query([json_floats(vector)]) for vector in queries]
        return [Request("POST", path, msgspec.json.encode(body), _JSON) for body in bodies]


def query(vectors: list[list[float]]) -> dict[str, Any]:
    """The body of a search, which asks for ids and distances alone."""
    return {"query_embeddings": vectors, "n_results": K, "include": ["distances"]}


@asynccontextmanager
async def running(site: Site, command: Path, directory: Path) -> AsyncIterator[Chroma]:
    """Chroma's server over the files of a directory, on the server's core."""
    port = free_port()
    words = [str(command), "run", "--path", str(directory), "--host", "127.0.0.1"]
    pinned = ("taskset", "-c", str(SERVER_CORE), *words, "--port", str(port))
    quiet = {"ANONYMIZED_TELEMETRY": "False"}
    part = Part(f"chroma-{directory.name}-{port}", site.directory, quiet, *pinned)
    part.start()
    headers = dict(_JSON)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session:
            await _answering(session, part)
            yield Chroma(port, session)
    finally:
        await part.stop()


async def _answering(session: aiohttp.ClientSession, part: Part) -> None:
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with session.get("/api/v2/heartbeat") as reply:
                        if reply.status == 200:
                            return
                except aiohttp.ClientConnectionError:  # it has not begun
                    pass
                await asyncio.sleep(0.1)
    except TimeoutError:
        said = part.log.read_text(errors="replace")[-1000:]
        raise SystemExit(f"Chroma's server does not answer: {said}") from None


async def tuned(site: Site, command: Path, directory: Path, truth: Truth) -> int:
    """Sets the least efSearch that reaches K9's target, and returns it."""
    for breadth in BREADTHS:
        async with running(site, command, directory) as server:
            await server.set_breadth(breadth)
        async with running(site, command, directory) as server:
            recall = await server.recall(truth)
        print(f"Chroma, efSearch {breadth}: recall@{K} {recall:.4f}", flush=True)
        if recall >= TARGET:
            return breadth
    raise SystemExit(f"Chroma does not reach a recall of {TARGET} with efSearch {BREADTHS[-1]}")


async def measure(
    scripts: dict[str, tuple[Path, int]], turns: int, seconds: float
) -> dict[str, list[Measured]]:
    """All turns of all servers; the first warms up."""
    found: dict[str, list[Measured]] = {name: [] for name in scripts}
    for turn in range(turns + 1):
        for name, (script, port) in scripts.items():
            measured = await run_wrk(script, port, seconds)
            if measured.errors:
                raise SystemExit(f"{name}: {measured.errors} requests failed")
            if turn:
                found[name].append(measured)
    return found


def report(found: dict[str, list[Measured]], recalls: dict[str, float], least: str) -> int:
    """Prints the figures; ratios to the server `least` have a target. The exit status."""
    figures = Report()
    for name, turns in found.items():
        figures.add(f"{name}: searches", [1e6 / turn.each_us for turn in turns], "a second")
        figures.add(f"{name}: p99", [turn.p99 / 1000 for turn in turns], "ms")
    for name, recall in recalls.items():
        figures.add(f"{name}: recall@{K}", [recall])
    each_us = {name: [turn.each_us for turn in turns] for name, turns in found.items()}
    for kind, to_reach in TO_REACH.items():
        for name in (name for name in found if name.startswith("Chroma")):
            target = at_least(to_reach) if name == least else None
            times = ratios(each_us[name], each_us[f"K9 {kind}"])
            figures.add(f"K9 {kind} to {name}: searches a second", times, target=target)
    return figures.end()


async def main(plan: argparse.Namespace) -> int:
    """Builds, measures in turns, reports; the exit status."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    queries = queries_of(rows)
    truth = await asyncio.to_thread(_truth, rows, queries[:QUERIES])
    command = plan.chroma
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        stock, own = site.directory / "chroma", site.directory / "chroma-tuned"
        async with running(site, command, stock) as server:
            await server.fill(rows)
            default = await server.breadth()
            print(f"Chroma has {len(rows):,} rows", flush=True)
        shutil.copytree(stock, own)
        breadth = await tuned(site, command, own, truth)
        await prepare(site, rows, ROOT)
        token = site.pool.token("operators")
        names = {f"Chroma, its efSearch {default}": stock, f"Chroma, efSearch {breadth}": own}
        made = requests_of(rows, queries)
        async with (
            serving(site, "now", ROOT) as port,
            running(site, command, stock) as first,
            running(site, command, own) as second,
        ):
            recalls = {"K9": await truth.recall_of(f"http://127.0.0.1:{port}", MODEL, token)}
            scripts = {
                f"K9 {kind}": (write_script(site.directory, kind, port, token, made[kind]), port)
                for kind in TO_REACH
            }
            for name, server in zip(names, (first, second), strict=True):
                recalls[name] = await server.recall(truth)
                requests = await server.requests(queries)
                script = write_script(site.directory, "chroma", server.port, "none", requests)
                scripts[name] = script, server.port
            found = await measure(scripts, plan.turns, plan.seconds)
    print(f"{len(rows):,} rows; K9's target of recall is {number(TARGET)}")
    return report(found, recalls, list(names)[-1])


def _truth(rows: Catalogue, queries: Floats) -> Truth:
    return Truth(list(rows), np.stack(list(rows.values())), queries)


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=5)
    parser.add_argument("--chroma", type=existing, required=True, help="its command")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
