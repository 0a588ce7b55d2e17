"""The service that schemathesis sends requests to: an API and a worker, with something in them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from core.settings import Settings
from tests.api.fuzz_msgpack import DIMENSION
from tests.api.fuzzing import Known
from tests.api.pool import Pool
from tests.api.serving import IDS, vector
from tests.api.test_process import client_at, environ_of
from tests.emulators import create_tables, free_port, running_valkey, settings_for
from tests.processes import Process, start

MODEL: Final = "minilm-l6-v2"
"""What the document's examples name."""
_EXAMPLES: Final = ("pandas", "numpy", "polars", "sku-1")
_ROWS: Final = 60
_REPORTS_KEPT: Final = 4
_USERS: Final = 200
_START_S: Final = 30.0
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """What runs, and where its processes write."""

    known: Known
    log: Path


@asynccontextmanager
async def running_target(
    settings: Settings, pool: Pool, directory: Path, *, spare: int
) -> AsyncIterator[Target]:
    """An API and a worker with tables and a queue of their own; stopped at the end.

    Args:
        settings: Of the service; its tables are made anew.
        pool: Whose tokens are good.
        directory: Of the caches, and of the log.
        spare: How many products, and how many reports, there are to delete.
    """
    port = free_port()
    stack = AsyncExitStack()
    made = await create_tables(settings_for(settings.aws.endpoint_url or ""))
    own = msgspec.structs.replace(settings, environment=made.environment, aws=made.aws)
    environ = environ_of(
        msgspec.structs.replace(own, redis_url=stack.enter_context(running_valkey())),
        K9_PORT=str(port),
        K9_CACHE_DIR=str(directory / "cache"),
        K9_WORK_DIR=str(directory / "work"),
        K9_REFRESH_S="0.2",
        K9_DELETION_SETTLE_S="0.1",
        K9_READ_TIMEOUT_S="20",
        K9_DEADLINE_S="30",
        K9_LOG_LEVEL="error",
    )
    log = directory / "log"
    async with stack:
        with log.open("wb") as output:
            for module in ("api", "worker"):
                process = await start(module, environ=environ, stdout=output, stderr=output)
                stack.push_async_callback(_stop, process)
        token = pool.token("operators", sub="fuzz-operator")
        client = await stack.enter_async_context(client_at(port, token))
        yield Target(await _filled(client, f"http://127.0.0.1:{port}", token, pool, spare), log)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 15)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _filled(client: httpx.AsyncClient, url: str, token: str, pool: Pool, spare: int) -> Known:
    """Stores what the document's examples name, and has it built."""
    products = [*_EXAMPLES, *IDS]
    products += [f"p-{number}" for number in range(_ROWS - len(products))]
    entries = [
        {"product_id": product_id, "vector": vector(row, DIMENSION).tolist()}
        for row, product_id in enumerate(products)
    ]
    stored = await _ok(client, "POST", f"/models/{MODEL}/embeddings:batch", {"embeddings": entries})
    builds = []
    for matrix_k in (5, 20):
        build = await _ok(client, "POST", f"/models/{MODEL}/builds", {"matrix_k": matrix_k})
        build_id = build.json()["build_id"]
        await _until(client, f"/builds/{build_id}", "status", "published")
        builds.append(build_id)
    spare_products = [f"spare-{number}" for number in range(spare)]
    entries = [{"product_id": name, "vector": [1, 2, 3]} for name in spare_products]
    await _ok(client, "POST", f"/models/{MODEL}/embeddings:batch", {"embeddings": entries})
    made = [
        await _ok(client, "POST", "/reports", {"title": f"report {number}"})
        for number in range(_REPORTS_KEPT + spare)
    ]
    reports = [reply.json()["id"] for reply in made]
    for name in ("m-ip", "m-l2"):
        metric = name.removeprefix("m-")
        path = f"/models/{name}/embeddings/pandas?metric={metric}"
        await _ok(client, "PUT", path, {"vector": [1, 2, 3]})
    spare_models = [f"m-spare-{number}" for number in range(spare)]
    for name in spare_models:
        await _ok(client, "PUT", f"/models/{name}/embeddings/pandas", {"vector": [1, 2, 3]})
    await _until(client, "/health/ready", "loaded", {MODEL: builds[-1]})
    lists = ("/models", "/reports", f"/models/{MODEL}/embeddings", f"/models/{MODEL}/builds")
    pages = {path: (await _ok(client, "GET", f"{path}?limit=1")).json() for path in lists}
    return Known(
        url=url,
        operator=token,
        users=tuple(pool.token(sub=f"fuzz-user-{number}") for number in range(_USERS)),
        model_version=MODEL,
        products=tuple(products),
        builds=tuple(builds),
        reports=tuple(reports[:_REPORTS_KEPT]),
        spare_products=tuple(spare_products),
        spare_reports=tuple(reports[_REPORTS_KEPT:]),
        spare_models=tuple(spare_models),
        watermark=stored.headers["x-watermark"],
        cursors={
            path.replace(MODEL, "{model_version}"): page["next_cursor"]
            for path, page in pages.items()
        },
    )


async def _until(client: httpx.AsyncClient, path: str, name: str, wanted: object) -> None:
    """Waits until the answer has this value under this name."""
    async with asyncio.timeout(_START_S):
        for _ in iter(int, 1):
            if (await client.get(path)).json()[name] == wanted:
                return
            await asyncio.sleep(_POLL_S)


async def _ok(
    client: httpx.AsyncClient, method: str, path: str, body: Any = None
) -> httpx.Response:
    reply = await client.request(method, path, json=body)
    assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
    return reply
