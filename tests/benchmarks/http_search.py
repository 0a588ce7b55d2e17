"""Searches over HTTP with a token, against a reply without work and against FAISS alone.

    python -m tests.benchmarks.http_search --file CATALOGUE.parquet [--rows 100000] [--turns 9]
        [--seconds 3] [--only json ...] [--before CHECKOUT]

On an emulator, a Valkey and a worker of its own. The API runs on one core, and wrk (Debian's
package) with 16 connections on another, two for `many`. There are 20,000 distinct queries, none of
them a row; each kind of request is sent for `--seconds` in turn, and all of that `--turns` times:

    empty       GET /health/live of the same process, through the router
    raw         FAISS alone on the same index file, one query at a time (microseconds a query)
    raw k=30    the same for 30 results, and with vectors of rows
    raw many    the same for 10 results, 256 queries at a time
    json        a search by vector in JSON
    msgpack     the same in msgpack, both ways
    product id  a search by product id
    beyond      the same for 30 results, more than the matrix has
    many        256 vectors a request, in msgpack (microseconds a vector)
    neighbors   a product's neighbours from the matrix
    bare        a reply as long as that of neighbors, by K9's own server without an application
    put         an embedding in JSON, which the emulator's own time dominates

K9's own time is that of a reply less that of FAISS alone at the same k, in the same run.

With `--before`, the API of another checkout (with its own `.venv`) runs beside this one's on the
same data and the same core, and the two are measured in turns; the index is then built by that
checkout's worker. Figures are medians with the lowest and the highest turn; a ratio or a difference
is taken in each turn.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.index.files import INDEX
from core.vectors.arrays import Doubles
from tests.benchmarks.arguments import site_parser
from tests.benchmarks.figures import Report, Target, at_least, at_most, ratios
from tests.benchmarks.published import read
from tests.benchmarks.raw import Raw
from tests.benchmarks.sent import (
    CLIENT_CORE,
    MODEL,
    TOGETHER,
    WRITTEN,
    Request,
    output,
    queries_of,
    requests_of,
    run_wrk,
    write_script,
)
from tests.benchmarks.stock import Catalogue
from tests.emulators import CREDENTIALS, free_port
from tests.faults.site import WORKERS, Part, Site, open_site

ROOT: Final = Path(__file__).parents[2]
SERVER_CORE: Final = 0
OWN: Final[dict[str, tuple[str, Target | None]]] = {
    "json": ("raw", at_most(180)),
    "msgpack": ("raw", at_most(165)),
    "product id": ("raw", None),
    "beyond": ("raw k=30", at_most(150)),
}
"""Kind of request → FAISS alone at the same k, and what K9's own microseconds have to reach."""
SHARES: Final[dict[str, tuple[str, Target]]] = {
    "json": ("raw", at_least(0.42)),
    "many": ("raw many", at_least(0.92)),
    "neighbors": ("bare", at_least(0.90)),
}
"""Kind of request → what takes the time that cannot be avoided, and its share of a reply's."""


async def run_raw(directory: Path, queries: Path, seconds: float) -> Raw:
    """FAISS alone, on the server's core."""
    words = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "tests.benchmarks.raw"]
    said = await output(*words, str(directory), str(queries), "--seconds", str(seconds))
    return msgspec.json.decode(said, type=Raw)


@asynccontextmanager
async def serving(
    site: Site, name: str, checkout: Path, ready: str = f"/models/{MODEL}"
) -> AsyncIterator[int]:
    """The API of a checkout on the server's core, until the end of the block; yields its port."""
    port = free_port()
    environ = site.environ | {
        "K9_PORT": str(port),
        "K9_METRICS_PORT": "0",
        "K9_CACHE_DIR": str(site.directory / f"cache-{name}"),
        "K9_WORK_DIR": str(site.directory / f"work-{name}"),
    }
    python = checkout / ".venv/bin/python"
    pinned = ("taskset", "-c", str(SERVER_CORE), str(python), "-m", "api")
    part = Part(f"api-{name}", site.directory, environ, *pinned, cwd=checkout)
    part.start()
    try:
        await _answering(site, port, ready)
        yield port
    finally:
        await part.stop()


async def _answering(site: Site, port: int, path: str) -> None:
    """Returns once the path is answered, and where it is a model version's, its index is loaded."""
    headers = {"Authorization": f"Bearer {site.pool.token()}"}
    async with (
        asyncio.timeout(300),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session,
    ):
        while True:
            try:
                async with session.get(path) as reply:
                    answer = await reply.json()
                if reply.status == 200 and answer.get("loaded", True):
                    return
            except aiohttp.ClientConnectionError:  # it has not begun
                pass
            await asyncio.sleep(0.2)


class Turns:
    """What was measured: kind of request → server → one figure a turn."""

    def __init__(self) -> None:
        self.each_us: dict[str, dict[str, list[float]]] = {}
        self.p99_us: dict[str, dict[str, list[float]]] = {}
        self.errors = 0

    def note(self, kind: str, server: str, each_us: float, p99_us: float = 0.0) -> None:
        """Takes one turn."""
        self.each_us.setdefault(kind, {}).setdefault(server, []).append(each_us)
        self.p99_us.setdefault(kind, {}).setdefault(server, []).append(p99_us)

    def report(self, report: Report) -> None:
        """Adds the figures, and ends where a request failed."""
        for kind, by_server in self.each_us.items():
            for server, us in by_server.items():
                name = kind if server == "now" else f"{kind} ({server})"
                report.add(f"{name}, each", us, "µs")
                if any(self.p99_us[kind][server]):
                    p99_ms = [p99 / 1000 for p99 in self.p99_us[kind][server]]
                    report.add(f"{name}, p99", p99_ms, "ms")
            if len(by_server) > 1:
                report.add(f"{kind}: now to before", ratios(by_server["now"], by_server["before"]))
        for kind, (floor, target) in OWN.items():
            if floor in self.each_us and kind in self.each_us:
                pairs = zip(self.each_us[kind]["now"], self.each_us[floor]["now"], strict=True)
                report.add(f"{kind}: K9's own", [all_ - raw for all_, raw in pairs], "µs", target)
        for kind, (floor, least) in SHARES.items():
            if floor in self.each_us and kind in self.each_us:
                shares = ratios(self.each_us[floor]["now"], self.each_us[kind]["now"])
                report.add(f"{kind}: share of {floor}", shares, target=least)
        if self.errors:
            raise SystemExit(f"{self.errors} requests failed")


async def prepare(
    site: Site, rows: Catalogue, builder: Path, attributes: dict[str, Doubles] | None = None
) -> None:
    """Rows and a published index of them, by the commands, API and worker of a checkout.

    With attributes: a number of each row by name, in the order of the rows.
    """
    for part in (*WORKERS, "api"):
        await site.parts[part].stop()
    binaries = builder / ".venv/bin"
    worker = Part(
        "worker",
        site.directory,
        site.environ,
        str(binaries / "python"),
        "-m",
        "worker",
        cwd=builder,
    )
    k9 = str(binaries / "k9")
    for model, stored in ((MODEL, rows), (WRITTEN, dict(list(rows.items())[:1]))):
        file = site.directory / f"{model}.parquet"
        flat = pa.array(np.concatenate(list(stored.values())))
        dimension = len(next(iter(stored.values())))
        vectors = pa.FixedSizeListArray.from_arrays(flat, dimension)
        more = {} if attributes is None else {n: v[: len(stored)] for n, v in attributes.items()}
        pq.write_table(pa.table({"product_id": list(stored), "vector": vectors} | more), file)
        named = ["--attributes", ",".join(more)] if more else []
        await _command(site, {}, k9, "import", str(file), "--model", model, *named)
    print(f"{len(rows):,} rows stored", flush=True)
    worker.start()
    try:
        async with serving(site, "builder", builder, ready="/health/live") as port:
            access = {
                "K9_URL": f"http://127.0.0.1:{port}",
                "K9_TOKEN": site.pool.token("operators"),
            }
            print(await _command(site, access, k9, "build", MODEL), flush=True)
    finally:
        await worker.stop()


async def _command(site: Site, environ: dict[str, str], *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *words,
        env=os.environ | site.environ | environ,
        cwd=site.directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{words[1]} failed: {err.decode(errors='replace')[-2000:]}")
    return out.decode()


async def main(plan: argparse.Namespace) -> int:
    """Builds, measures in turns, reports; the exit status."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    queries = queries_of(rows)
    checkouts = {"now": ROOT}
    if plan.before is not None:
        checkouts = {"before": plan.before.resolve(), "now": ROOT}
    turns = Turns()
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        await prepare(site, rows, next(iter(checkouts.values())))
        os.sched_setaffinity(0, {CLIENT_CORE})
        every = requests_of(rows, queries)
        if unknown := set(plan.only or ()) - every.keys():
            raise SystemExit(f"--only {min(unknown)}: is one of {', '.join(every)}")
        made = {kind: every[kind] for kind in plan.only or every}
        saved = site.directory / "queries.npy"
        np.save(saved, queries)
        token = site.pool.token("operators")
        async with _all_serving(site, checkouts) as ports, _bare(site, ports["now"], every) as bare:
            scripts = {
                (kind, name): (write_script(site.directory, kind, port, token, requests), port)
                for kind, requests in made.items()
                for name, port in ports.items()
            }
            if "neighbors" in made:
                same = write_script(site.directory, "bare", bare, token, made["neighbors"])
                scripts["bare", "now"] = same, bare
            index = next((site.directory / "cache-now").rglob(INDEX), None)
            for turn in range(plan.turns + 1):  # the first warms up
                notes = turns if turn else Turns()
                await _turn(notes, scripts, plan.seconds, reverse=turn % 2 == 0)
                if index is not None and turn:  # the family exact has no index
                    raw = await run_raw(index.parent, saved, plan.seconds)
                    turns.note("raw", "now", raw.one)
                    turns.note("raw k=30", "now", raw.beyond)
                    turns.note("raw many", "now", raw.many)
    report = Report()
    turns.report(report)
    return report.end()


@asynccontextmanager
async def _all_serving(site: Site, checkouts: dict[str, Path]) -> AsyncIterator[dict[str, int]]:
    ports: dict[str, int] = {}
    (first, *further) = checkouts.items()
    async with serving(site, *first) as port:
        ports[first[0]] = port
        if not further:
            yield ports
            return
        async with serving(site, *further[0]) as other:
            ports[further[0][0]] = other
            yield ports


@asynccontextmanager
async def _bare(site: Site, port: int, made: dict[str, list[Request]]) -> AsyncIterator[int]:
    """The port of a server without an application, whose replies are as long as neighbours'."""
    headers = {"Authorization": f"Bearer {site.pool.token()}"}
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session,
        session.get(made["neighbors"][0].path) as reply,
    ):
        size = len(await reply.read())
    bare = free_port()
    words = ("taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "tests.benchmarks.bare")
    part = Part("bare", site.directory, {}, *words, str(bare), str(size), cwd=ROOT)
    part.start()
    try:
        await _answering(site, bare, "/")
        yield bare
    finally:
        await part.stop()


async def _turn(
    turns: Turns, scripts: dict[tuple[str, str], tuple[Path, int]], seconds: float, *, reverse: bool
) -> None:
    """One turn of every kind; which server comes first alternates."""
    kinds = dict.fromkeys(kind for kind, _ in scripts)
    for kind in kinds:
        for name in sorted((name for each, name in scripts if each == kind), reverse=reverse):
            found = await run_wrk(*scripts[kind, name], seconds, kind)
            each_us = found.each_us / (TOGETHER if kind == "many" else 1)
            turns.note(kind, name, each_us, found.p99)
            turns.errors += found.errors


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind in a turn")
    parser.add_argument("--only", nargs="+", help="kinds of requests, in place of all of them")
    parser.add_argument("--before", type=Path, help="another checkout to measure beside this one")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
