"""What several API processes on one port cost against one: memory of the index, processor time.

    python -m tests.benchmarks.processes --file CATALOGUE.parquet [--rows 100000]
        [--processes 1,2,4] [--turns 5] [--seconds 3]

On an emulator, a Valkey and a worker of its own. An API for each number of processes (see
`K9_API_PROCESSES`) runs on one core, and wrk (Debian's package) with 16 connections on another, in
turns. Told are, with the lowest and the highest turn:

    processor    processor time a search by vector in JSON, of all processes and their parent
    connections  how many of the 16 each process took
    index        memory of the index: the proportional share (PSS) of the version's files over all
                 processes, and for each of them what opening it takes besides
    all          PSS of all processes and their parent
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from core.index.manifest import MANIFEST
from core.vectors.arrays import Floats, json_floats
from tests.benchmarks.arguments import site_parser
from tests.benchmarks.figures import Report, at_most, ratios
from tests.benchmarks.http_search import ROOT, SERVER_CORE, prepare
from tests.benchmarks.published import read
from tests.benchmarks.sent import MODEL, K, Request, queries_of, run_wrk, write_script
from tests.emulators import CREDENTIALS, free_port
from tests.faults.site import Part, Site, open_site

PROCESSOR_MAX: Final = 1.05
"""Of two processes to one."""
MEMORY_MAX: Final = 1.15
"""Of four processes to one."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024


class Api(msgspec.Struct, frozen=True):
    """A running API."""

    port: int
    operations: int
    part: Part
    cache: Path

    def processes(self) -> list[int]:
        """The process, or the parent and its processes."""
        pid = self.part.pid
        if pid is None:
            raise SystemExit(f"the API has ended: {self.part.log}")
        return [pid, *self.part.children()]


@asynccontextmanager
async def serving(site: Site, count: int, checkout: Path = ROOT) -> AsyncIterator[Api]:
    """A checkout's API of so many processes on the server's core, with its index loaded."""
    port, operations = free_port(), free_port()
    cache = site.directory / "cache-processes"
    environ = site.environ | {
        "K9_PORT": str(port),
        "K9_METRICS_PORT": str(operations),
        "K9_API_PROCESSES": str(count),
        "K9_CACHE_DIR": str(cache),
    }
    python = str(checkout / ".venv/bin/python")
    pinned = ("taskset", "-c", str(SERVER_CORE), python, "-m", "api")
    part = Part(f"api-of-{count}", site.directory, environ, *pinned, cwd=checkout)
    part.start()
    api = Api(port, operations, part, cache)
    try:
        async with asyncio.timeout(300):
            for _ in iter(int, 1):
                ready = await figures(api, "k9_ready")
                if ready == [1.0] * count and await figures(api, "k9_loaded_rows"):
                    break
                await asyncio.sleep(0.2)
        yield api
    finally:
        await part.stop()


async def figures(api: Api, name: str) -> list[float]:
    """A metric of each process; none where it does not answer yet."""
    url = f"http://127.0.0.1:{api.operations}/metrics"
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            text = await reply.text() if reply.status == 200 else ""
    except aiohttp.ClientConnectionError:
        return []
    return [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


def searches(queries: Floats) -> list[Request]:
    """A search by each vector."""
    json_type = (("Content-Type", "application/json"),)
    path = f"/models/{MODEL}/search"
    return [
        Request(
            "POST", path, msgspec.json.encode({"vector": json_floats(query), "k": K}), json_type
        )
        for query in queries
    ]


def processor_s(api: Api) -> float:
    """Processor time that all of them have used."""
    used = 0
    for pid in api.processes():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / _TICKS


def pss(api: Api) -> tuple[int, int]:
    """Bytes of memory by proportional share: of the files in the cache, and in all."""
    of_files = whole = 0
    for pid in api.processes():
        mapped = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                mapped = str(api.cache) in line
            elif words[0] == "Pss:":
                size = int(words[1]) * _KIB
                whole += size
                of_files += size if mapped else 0
    return of_files, whole


async def opening(directory: Path) -> int:
    """Bytes of memory of its own that a process takes to open a version."""
    words = (sys.executable, "-m", "tests.benchmarks.opening", str(directory))
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("the version could not be opened")
    return int(out)


async def measure(site: Site, queries: Floats, plan: argparse.Namespace) -> int:
    """All turns, and the report; the exit status."""
    made = searches(queries)
    token = site.pool.token("operators")
    each_us: dict[int, list[float]] = {count: [] for count in plan.processes}
    taken: dict[int, list[float]] = {}
    async with AsyncExitStack() as stack:
        apis = {}
        for count in plan.processes:
            apis[count] = await stack.enter_async_context(serving(site, count))
        scripts = {
            count: write_script(site.directory, f"of-{count}", api.port, token, made)
            for count, api in apis.items()
        }
        for turn in range(plan.turns + 1):  # the first warms up
            for count, api in apis.items():
                before = processor_s(api)
                running = asyncio.create_task(run_wrk(scripts[count], api.port, plan.seconds))
                await asyncio.sleep(plan.seconds / 2)
                taken[count] = await figures(api, "k9_http_connections")
                found = await running
                if found.errors:
                    raise SystemExit(f"{found.errors} requests failed")
                if turn:
                    each_us[count].append(1e6 * (processor_s(api) - before) / found.requests)
    memory = {}
    for count in plan.processes:  # one at a time: they would share the files with one another
        async with serving(site, count) as api:
            await run_wrk(
                write_script(site.directory, f"alone-{count}", api.port, token, made), api.port, 10
            )
            memory[count] = pss(api)
    manifest = next((site.directory / "cache-processes").rglob(MANIFEST))
    return report(each_us, taken, memory, await opening(manifest.parent))


def report(
    each_us: dict[int, list[float]],
    taken: dict[int, list[float]],
    memory: dict[int, tuple[int, int]],
    own: int,
) -> int:
    """Prints the figures; ratios are to the first number of processes. The exit status."""
    figures = Report()
    base = next(iter(each_us))
    for count, us in each_us.items():
        figures.add(f"{count} processes: processor time a search", us, "µs")
        print(f"of {count} processes each had connections: {taken[count]}")
    for count, us in list(each_us.items())[1:]:
        target = at_most(PROCESSOR_MAX) if (base, count) == (1, 2) else None
        name = f"processor time a search: {count} processes to {base}"
        figures.add(name, ratios(us, each_us[base]), target=target)
    print(f"opening the index takes {own / 1e6:.2f} MB besides its files, each process")
    index = {count: files + count * own for count, (files, _) in memory.items()}
    for count, (_, whole) in memory.items():
        figures.add(f"{count} processes: memory of the index", [index[count] / 1e6], "MB")
        figures.add(f"{count} processes: memory of all", [whole / 1e6], "MB")
    for count in list(memory)[1:]:
        target = at_most(MEMORY_MAX) if (base, count) == (1, 4) else None
        ratio = index[count] / index[base]
        figures.add(f"memory of the index: {count} processes to {base}", [ratio], target=target)
    return figures.end()


async def main(plan: argparse.Namespace) -> int:
    """Builds, measures, reports; the exit status."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        await prepare(site, rows, ROOT)
        return await measure(site, queries_of(rows), plan)


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=5)
    parser.add_argument("--processes", type=_counts, default=[1, 2, 4], help="as 1,2,4")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
