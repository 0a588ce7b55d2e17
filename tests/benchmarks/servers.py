"""The HTTP server beneath K9 on one core: uvicorn with K9's protocol, as it runs, and granian.

    python -m tests.benchmarks.servers --file CATALOGUE.parquet --granian ENVIRONMENT/bin/granian
        [--rows 100000] [--turns 5] [--seconds 3]

granian is in an environment of its own, of the same Python, and takes K9 and what it needs from
this one. On an emulator, a Valkey and a worker of its own; each server runs on one core, and wrk
(Debian's package) with 16 connections on another, in turns. Printed are microseconds of time and of
processor time a request, with the lowest and the highest turn:

    bare     an application that reads the body, which is a search's, and answers 15 bytes
    empty    GET /health/live of K9
    json     a search by vector in JSON
"""

import argparse
import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from api.app import create_app
from api.entrypoint import Entrypoint
from core.settings import Settings
from core.stalls import freeze_memory
from tests.benchmarks.arguments import existing, site_parser
from tests.benchmarks.figures import Report
from tests.benchmarks.http_search import ROOT, SERVER_CORE, prepare
from tests.benchmarks.processes import Api, processor_s, searches
from tests.benchmarks.published import read
from tests.benchmarks.sent import Request, queries_of, run_wrk, write_script
from tests.emulators import CREDENTIALS, free_port
from tests.faults.site import Part, Site, open_site

_REPLY: Final = b'{"status":"ok"}'
_MODULE: Final = "tests.benchmarks.servers"


def application() -> Entrypoint:
    """K9, for a server that is given a factory."""
    return create_app(Settings.from_env(os.environ), started=freeze_memory)


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The application that does nothing."""
    if scope["type"] == "lifespan":
        for done in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            await receive()
            await send({"type": done})
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _REPLY, "more_body": False})


def commands(granian: Path, port: int) -> dict[str, tuple[str, list[str]]]:
    """Server → the kind of application, and the command."""
    python = str(ROOT / ".venv/bin/python")
    own = [str(granian), "--interface", "asgi", "--loop", "uvloop", "--port", str(port), "--no-ws"]
    one = [*own, "--workers", "1", "--backlog", "1024", "--backpressure", "1024"]
    uvicorn = [python, "-m", "uvicorn", f"{_MODULE}:bare", "--port", str(port)]
    found = {
        "uvicorn bare": ("bare", [*uvicorn, "--loop", "uvloop", "--http", "httptools"]),
        "uvicorn K9": ("K9", [python, "-m", "api"]),
    }
    found["uvicorn bare"][1].extend(["--no-access-log", "--log-level", "warning"])
    for mode in ("st", "mt"):
        words = [*one, "--runtime-mode", mode, "--runtime-threads", "1"]
        found[f"granian {mode} bare"] = ("bare", [*words, f"{_MODULE}:bare"])
        found[f"granian {mode} K9"] = ("K9", [*words, "--factory", f"{_MODULE}:application"])
    return found


def _started(site: Site, name: str, words: list[str], port: int) -> Part:
    packages = Path(aiohttp.__file__).parents[1]
    environ = site.environ | {
        "K9_PORT": str(port),
        "K9_METRICS_PORT": "0",
        "K9_CACHE_DIR": str(site.directory / "cache-servers"),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if "granian" in words[0]:
        environ["PYTHONPATH"] = f"{ROOT}:{packages}"
    pinned = ("taskset", "-c", str(SERVER_CORE), *words)
    part = Part(name.replace(" ", "-"), site.directory, environ, *pinned, cwd=ROOT)
    part.start()
    return part


async def _end(part: Part) -> None:
    """Ends a server with its workers, which granian's would outlive."""
    workers = part.children()
    await part.stop()
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


async def _answering(port: int, request: Request, token: str) -> None:
    """Returns once the request is answered with 200."""
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {token}", **dict(request.headers)}
    async with asyncio.timeout(120), aiohttp.ClientSession(url, headers=headers) as session:
        for _ in iter(int, 1):
            try:
                call = session.request(request.method, request.path, data=request.body)
                async with call as reply:
                    if reply.status == 200:
                        return
            except aiohttp.ClientError:  # it has not begun
                pass
            await asyncio.sleep(0.2)


async def measure(site: Site, made: list[Request], plan: argparse.Namespace) -> None:
    """All turns, and the report."""
    token = site.pool.token("operators")
    kinds = {"bare": {"bare": made}, "K9": {"empty": [Request("GET", "/health/live")]}}
    kinds["K9"]["json"] = made
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    async with AsyncExitStack() as stack:
        scripts: dict[tuple[str, str], tuple[Path, Api]] = {}
        names = list(commands(plan.granian, 0))
        for name in names:
            port = free_port()
            application_kind, words = commands(plan.granian, port)[name]
            part = _started(site, name, words, port)
            stack.push_async_callback(_end, part)
            await _answering(port, made[0], token)
            api = Api(port, 0, part, site.directory)
            for kind, requests in kinds[application_kind].items():
                script = write_script(site.directory, kind, port, token, requests)
                scripts[name, kind] = script, api
        for turn in range(plan.turns + 1):  # the first warms up
            for key, (script, api) in scripts.items():
                before = processor_s(api)
                found = await run_wrk(script, api.port, plan.seconds)
                if found.errors:
                    raise SystemExit(f"{key}: {found.errors} requests failed")
                used_us = 1e6 * (processor_s(api) - before) / found.requests
                if turn:
                    measured.setdefault(key, []).append((found.each_us, used_us))
    report = Report()
    for (name, kind), turns in measured.items():
        taken, used = zip(*turns, strict=True)
        report.add(f"{name}, {kind}", taken, "µs")
        report.add(f"{name}, {kind}: processor time", used, "µs")
    report.end()


async def main(plan: argparse.Namespace) -> None:
    """Builds, measures, prints."""
    rows = dict(list(read(plan.file).items())[: plan.rows])
    async with open_site(K9_WATERMARK_LAG_S="5", K9_LEASE_S="180") as site:
        await prepare(site, rows, ROOT)
        await measure(site, searches(queries_of(rows)), plan)


if __name__ == "__main__":
    parser = site_parser(__doc__, turns=5)
    parser.add_argument("--granian", type=existing, required=True, help="its command")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    given = parser.parse_args()
    os.environ |= CREDENTIALS
    asyncio.run(main(given))
