"""How long an API process takes from its start to its first answer, its index in the cache.

    python -m tests.benchmarks.starting --file CATALOGUE.parquet [--rows 100000] [--turns 9]
        [--before CHECKOUT]

On an emulator, a Valkey and a worker of its own. The version that the worker builds is downloaded
once; then the process is started again and again, with the files in the cache of the machine, as
after a restart. A client sends a search by vector every few milliseconds, and these times are told,
from the start of the process:

    listening   the port took a connection
    answered    the first search was answered with 200
    processor   processor time of the process until then

With `--before`, the API of another checkout (with its own `.venv`) is started in turn with this
one's. Python's bytecode is kept in a directory of the run's own, as an installed K9 has it.
"""

import argparse
import asyncio
import os
import sys
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Final

import aiohttp
import msgspec

from core.vectors.arrays import Floats, json_floats
from tests.benchmarks.arguments import site_parser
from tests.benchmarks.figures import Report, at_most
from tests.benchmarks.http_search import ROOT, prepare
from tests.benchmarks.published import read
from tests.benchmarks.sent import MODEL, K, queries_of
from tests.emulators import CREDENTIALS, free_port
from tests.faults.site import Site, open_site

ANSWERED_S_MAX: Final = 1.5
"""With 100,000 rows."""
_ASK_S: Final = 0.005
_GIVE_UP_S: Final = 60.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Started(msgspec.Struct, frozen=True):
    """One start, in seconds."""

    listening: float
    answered: float
    processor: float


async def start_once(site: Site, checkout: Path, cache: Path, query: Floats) -> Started:
    """Starts an API process with a cache of versions, asks until it answers, and ends it."""
    port = free_port()
    environ = site.environ | {
        "K9_PORT": str(port),
        "K9_CACHE_DIR": str(cache),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(site.directory / "bytecode"),
    }
    body = msgspec.json.encode({"vector": json_floats(query), "k": K})
    headers = {"Authorization": f"Bearer {site.pool.token()}", "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{port}"
    with (site.directory / "api-started.log").open("ab") as log:
        begun = perf_counter()
        process = await asyncio.create_subprocess_exec(
            str(checkout / ".venv/bin/python"),
            "-m",
            "api",
            env=os.environ | environ,
            cwd=checkout,
            stdout=log,
            stderr=log,
        )
    try:
        async with (
            asyncio.timeout(_GIVE_UP_S),
            aiohttp.ClientSession(url, headers=headers) as session,
        ):
            await _connected(port)
            listening = perf_counter() - begun
            while True:
                async with session.post(f"/models/{MODEL}/search", data=body) as reply:
                    if reply.status == 200:
                        break
                await asyncio.sleep(_ASK_S)
            answered = perf_counter() - begun
        return Started(listening, answered, _processor_s(process.pid))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _connected(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(_ASK_S)
        else:
            writer.close()
            return


def _processor_s(pid: int) -> float:
    """Processor time that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def measure(
    site: Site, checkouts: dict[str, Path], query: Floats, turns: int
) -> dict[str, list[Started]]:
    """Starts each of them in turn; the first turn downloads the version, and is not counted."""
    found: dict[str, list[Started]] = defaultdict(list)
    for turn in range(turns + 1):
        for name, checkout in sorted(checkouts.items(), reverse=turn % 2 == 0):
            cache = site.directory / f"cache-{checkout.name}"
            started = await start_once(site, checkout, cache, query)
            if turn:
                found[name].append(started)
    return found


def report(found: dict[str, list[Started]]) -> int:
    """Prints the figures; the exit status."""
    figures = Report()
    for name, starts in found.items():
        for field in Started.__struct_fields__:
            target = at_most(ANSWERED_S_MAX) if (name, field) == ("now", "answered") else None
            figures.add(
                f"start ({name}): {field}", [getattr(s, field) for s in starts], "s", target
            )
    return figures.end()


async def main(plan: argparse.Namespace) -> int:
    """Builds, starts, reports; the exit status."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    checkouts = {"now": ROOT}
    if plan.before is not None:
        checkouts["before"] = plan.before.resolve()
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        await prepare(site, rows, ROOT)
        return report(await measure(site, checkouts, queries_of(rows)[0], plan.turns))


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=9)
    parser.add_argument("--before", type=Path, help="another checkout to start beside this one")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    sys.exit(asyncio.run(main(given)))
