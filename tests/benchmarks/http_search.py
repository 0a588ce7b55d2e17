"""Searches over HTTP with a token, against a reply without work and against FAISS alone.

    python -m tests.benchmarks.http_search --file CATALOGUE.parquet [--rows 100000] [--turns 9]
        [--seconds 3] [--before CHECKOUT]

On an emulator, a Valkey and a worker of its own. The API runs on one core, and wrk (Debian's
package) with 16 connections on another. There are 20,000 distinct queries, none of them a row;
each kind of request is sent for `--seconds` in turn, and all of that `--turns` times:

    empty       GET /health/live of the same process, the reply that takes the least work
    raw         FAISS alone on the same index file, one query at a time (microseconds a query)
    json        a search by vector in JSON
    msgpack     the same in msgpack, both ways
    product id  a search by product id
    neighbors   a product's neighbours from the matrix
    put         an embedding in JSON, which the emulator's own time dominates

With `--before`, the API of another checkout (with its own `.venv`) runs beside this one's on the
same data and the same core, and the two are measured in turns; the index is then built by that
checkout's worker. Medians are printed with the lowest and the highest turn, and the ratio of the
two as the median of the ratios of each turn.
"""

import argparse
import asyncio
import os
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.index.files import INDEX
from core.vectors.arrays import Floats, json_floats
from tests.benchmarks.published import read
from tests.benchmarks.stock import Catalogue
from tests.emulators import CREDENTIALS, free_port
from tests.faults.site import WORKERS, Part, Site, open_site

MODEL: Final = "searched"
WRITTEN: Final = "written"
QUERIES: Final = 20_000
K: Final = 10
CONNECTIONS: Final = 16
ROOT: Final = Path(__file__).parents[2]
SERVER_CORE, CLIENT_CORE = 0, 1
_LUA: Final = """
local requests, count, at = {{}}, 0, 0
local file = assert(io.open("{path}", "rb"))
while true do
  local length = file:read(8)
  if length == nil then break end
  count = count + 1
  requests[count] = file:read(tonumber(length, 16))
end
request = function() at = at % count + 1; return requests[at] end
done = function(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  local form = 'RESULT {{"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": %d}}\\n'
  io.write(string.format(form, summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), failed))
end
"""


class Measured(msgspec.Struct, frozen=True):
    """One turn of one kind of request."""

    requests: int
    us: int
    p50: int
    p99: int
    errors: int
    """Replies that are not 2xx or 3xx, and requests without a reply."""

    @property
    def each_us(self) -> float:
        """Microseconds a request, which on one saturated core is its cost."""
        return self.us / max(1, self.requests)


class Request(msgspec.Struct, frozen=True):
    """A request of one kind."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def queries_of(rows: Catalogue) -> Floats:
    """float32 (QUERIES, d): each a row moved a good way towards another one."""
    generator = np.random.default_rng(17)
    all_rows = np.stack(list(rows.values()))
    one, other = generator.integers(0, len(all_rows), (2, QUERIES))
    mixed: Floats = np.float32(0.8) * all_rows[one] + np.float32(0.2) * all_rows[other]
    return mixed


def requests_of(rows: Catalogue, queries: Floats) -> dict[str, list[Request]]:
    """Every kind of request, QUERIES of each."""
    json_type = (("Content-Type", "application/json"),)
    packed = tuple((name, "application/msgpack") for name in ("Content-Type", "Accept"))
    path = f"/models/{MODEL}/search"
    names = np.random.default_rng(19).choice(list(rows), QUERIES).tolist()
    plain = [json_floats(query) for query in queries]

    def searches(bodies: list[Any]) -> list[Request]:
        return [Request("POST", path, msgspec.json.encode(b), json_type) for b in bodies]

    return {
        "empty": [Request("GET", "/health/live")],
        "json": searches([{"vector": vector, "k": K} for vector in plain]),
        "msgpack": [
            Request("POST", path, msgspec.msgpack.encode({"vector": q.tobytes(), "k": K}), packed)
            for q in queries
        ],
        "product id": searches([{"product_id": name, "k": K} for name in names]),
        "neighbors": [
            Request("GET", f"/models/{MODEL}/products/{quote(name, safe='')}/neighbors?k={K}")
            for name in names
        ],
        "put": [
            Request(
                "PUT",
                f"/models/{WRITTEN}/embeddings/p{number}",
                msgspec.json.encode({"vector": vector}),
                json_type,
            )
            for number, vector in enumerate(plain)
        ],
    }


def write_script(directory: Path, kind: str, port: int, token: str, made: list[Request]) -> Path:
    """A wrk script that sends these requests in order, over and over."""
    data = directory / f"{port}-{kind.replace(' ', '-')}"
    with data.open("wb") as file:
        for one in made:
            length = [("Content-Length", str(len(one.body)))] if one.body else []
            headers = [("Host", f"127.0.0.1:{port}"), ("Authorization", f"Bearer {token}"), *length]
            lines = [f"{one.method} {one.path} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in [*headers, *one.headers]]
            raw = "\r\n".join([*lines, "", ""]).encode() + one.body
            file.write(b"%08x" % len(raw) + raw)
    script = data.with_suffix(".lua")
    script.write_text(_LUA.format(path=data))
    return script


async def run_wrk(script: Path, port: int, seconds: float) -> Measured:
    """One turn."""
    words = ["taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", f"-c{CONNECTIONS}"]
    words += [f"-d{max(1, round(seconds))}s", "-s", str(script), f"http://127.0.0.1:{port}/"]
    said = await _output(*words)
    line = next(text for text in said.splitlines() if text.startswith("RESULT "))
    return msgspec.json.decode(line.removeprefix("RESULT "), type=Measured)


async def run_raw(directory: Path, queries: Path, seconds: float) -> float:
    """Microseconds a query of FAISS alone, on the server's core."""
    words = ["taskset", "-c", str(SERVER_CORE), sys.executable, "-m", "tests.benchmarks.raw"]
    return float(await _output(*words, str(directory), str(queries), "--seconds", str(seconds)))


async def _output(*words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{words[3]} failed: {err.decode(errors='replace')[-2000:]}")
    return out.decode()


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

    def report(self) -> None:
        """Prints the table."""
        servers = list(next(iter(self.each_us.values())))
        raw = self.each_us.get("raw", {}).get("now", [])
        for kind, by_server in self.each_us.items():
            for server, us in by_server.items():
                middle = statistics.median(us)
                more = ""
                if raw and kind in {"json", "msgpack", "product id"}:
                    more = f"   K9's own {middle - statistics.median(raw):6.1f} µs"
                p99 = statistics.median(self.p99_us[kind][server])
                print(
                    f"{kind:<11} {server:<7} {middle:8.1f} µs ({min(us):.1f} to {max(us):.1f})  "
                    f"{1e6 / middle:9,.0f} a second   p99 {p99 / 1000:6.1f} ms{more}"
                )
            if len(servers) > 1 and len(by_server) > 1:
                pairs = zip(by_server["now"], by_server["before"], strict=True)
                ratios = [now / before for now, before in pairs]
                print(
                    f"{kind:<11} now/before {statistics.median(ratios):.3f} "
                    f"({min(ratios):.3f} to {max(ratios):.3f}) of {len(ratios)} turns"
                )
        print(f"replies that failed: {self.errors}")


async def prepare(site: Site, rows: Catalogue, builder: Path) -> None:
    """Rows and a published index of them, by the commands, API and worker of a checkout."""
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
        pq.write_table(pa.table({"product_id": list(stored), "vector": vectors}), file)
        await _command(site, {}, k9, "import", str(file), "--model", model)
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
    """Builds, measures in turns, prints; 1 where a request failed."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    queries = queries_of(rows)
    checkouts = {"now": ROOT}
    if plan.before is not None:
        checkouts = {"before": plan.before.resolve(), "now": ROOT}
    turns = Turns()
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        await prepare(site, rows, next(iter(checkouts.values())))
        os.sched_setaffinity(0, {CLIENT_CORE})
        made = requests_of(rows, queries)
        saved = site.directory / "queries.npy"
        np.save(saved, queries)
        token = site.pool.token("operators")
        async with _all_serving(site, checkouts) as ports:
            scripts = {
                (kind, name): write_script(site.directory, kind, port, token, requests)
                for kind, requests in made.items()
                for name, port in ports.items()
            }
            index = next((site.directory / "cache-now").rglob(INDEX), None)
            for turn in range(plan.turns + 1):  # the first warms up
                notes = turns if turn else Turns()
                await _turn(notes, scripts, ports, plan.seconds, reverse=turn % 2 == 0)
                if index is not None and turn:  # the family exact has no index
                    raw_us = await run_raw(index.parent, saved, plan.seconds)
                    turns.note("raw", "now", raw_us)
    turns.report()
    return 1 if turns.errors else 0


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


async def _turn(
    turns: Turns,
    scripts: dict[tuple[str, str], Path],
    ports: dict[str, int],
    seconds: float,
    *,
    reverse: bool,
) -> None:
    """One turn of every kind; which server comes first alternates."""
    for kind in dict.fromkeys(kind for kind, _ in scripts):
        for name, port in sorted(ports.items(), reverse=reverse):
            found = await run_wrk(scripts[kind, name], port, seconds)
            turns.note(kind, name, found.each_us, found.p99)
            turns.errors += found.errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, required=True, help="a catalogue as Parquet")
    parser.add_argument("--rows", type=int, default=100_000, help="of the file, at the most")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind in a turn")
    parser.add_argument("--before", type=Path, help="another checkout to measure beside this one")
    given = parser.parse_args()
    if not given.file.exists():
        sys.exit(f"there is no file {given.file}")
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
