"""One environment, and the processes of two releases that serve it."""

import asyncio
import os
import signal
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import msgspec

from core.models import Build
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.api.pool import CLIENT_ID, Pool, running_pool
from tests.emulators import (
    CREDENTIALS,
    CURSOR_KEY,
    create_tables,
    free_port,
    running,
    running_valkey,
    settings_for,
)
from tests.faults.site import Part
from tests.upgrade.releases import Release
from tests.worker.processes import until as build_until

STOP_S: Final = 60.0
"""How long a process may take to end after SIGTERM."""
_WAIT_S: Final = 120.0
_TOKEN_S: Final = 4 * 3600
TIMES: Final = {
    "K9_RECONCILE_S": "1",
    "K9_LEASE_S": "5",
    "K9_HEARTBEAT_S": "1",
    "K9_DELETION_SETTLE_S": "2",
    "K9_MODEL_CACHE_S": "2",
    "K9_BATCH_DEADLINE_S": "10",
    "K9_WRITE_SETTLE_S": "2",
    "K9_DEADLINE_S": "20",
    "K9_READ_TIMEOUT_S": "10",
}
"""Waits that are shorter than in production, so that the test is; deadlines for a slow emulator."""


class Program(Part):
    """A process of a release, which can also be ended as an orchestrator ends it."""

    async def drain(self) -> None:
        """SIGTERM, and waits for its end; it is not started again.

        Raises:
            TimeoutError: it did not end in time.
        """
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        if self.pid is not None and self._running is not None:
            self._running.send_signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_S):
                await self._running.wait()


class Environment:
    """The tables, bucket and Valkey of one environment, and who works on them."""

    def __init__(
        self, resources: Resources, pool: Pool, directory: Path, releases: Sequence[Release]
    ) -> None:
        self.resources = resources
        self.settings = resources.settings
        self.pool = pool
        self.directory = directory
        self.releases = {release.name: release for release in releases}
        self._ports = {release.name: free_port() for release in releases}
        self._clients: dict[tuple[str, str, bool], httpx.AsyncClient] = {}
        self.programs = {
            f"{release.name}-{kind}": self._program(release, kind)
            for release in releases
            for kind in ("api", "worker")
        }
        self.running: set[str] = set()

    def _program(self, release: Release, kind: str) -> Program:
        command = release.command(kind)
        environ = self.environ(release)
        return Program(
            f"{release.name}-{kind}", self.directory, environ, *command, cwd=release.source
        )

    def environ(self, release: Release) -> dict[str, str]:
        """The variables of a process; each release has a disk of its own."""
        settings = self.settings
        disk = self.directory / release.name
        return (
            CREDENTIALS
            | TIMES
            | {
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_ENDPOINT_URL": settings.aws.endpoint_url or "",
                "AWS_REGION": settings.aws.region,
                "REDIS_URL": settings.redis_url,
                "K9_STACK": "off",
                "K9_ENVIRONMENT": settings.environment,
                "K9_BUCKET": settings.aws.bucket or "",
                "K9_AUTH_ISSUER": self.pool.issuer,
                "K9_AUTH_JWKS_URL": self.pool.url,
                "K9_AUTH_CLIENT_IDS": CLIENT_ID,
                "K9_CURSOR_KEYS": CURSOR_KEY,
                "K9_PORT": str(self._ports[release.name]),
                "K9_METRICS_PORT": "0",
                "K9_WORKER_METRICS_PORT": "0",
                "K9_WORK_DIR": str(disk / "work"),
                "K9_CACHE_DIR": str(disk / "cache"),
            }
        )

    async def start(self, *names: str) -> None:
        """Starts programs that do not run; an API answers when this returns."""
        for name in names:
            if name in self.running:
                continue
            self.programs[name].start()
            if name.endswith("-api"):
                await self._until_ready(name.removesuffix("-api"))
            self.running.add(name)

    async def _until_ready(self, release: str) -> None:
        client = self.client(release)

        async def ready() -> bool:
            try:
                return (await client.get("/health/ready")).is_success
            except httpx.TransportError:
                return False

        await until(ready, _WAIT_S)

    async def stop(self, *names: str) -> None:
        """Ends programs by SIGTERM."""
        for name in names:
            if name in self.running:
                self.running.discard(name)
                await self.programs[name].drain()

    async def kill_worker(self, release: str) -> None:
        """SIGKILL to a worker, which is not started again."""
        name = f"{release}-worker"
        self.running.discard(name)
        await self.programs[name].stop()

    async def kill_api(self, release: str) -> None:
        """SIGKILL to an API; it answers again when this returns."""
        assert self.programs[f"{release}-api"].kill()
        await self._until_ready(release)

    def client(self, release: str, sub: str = "operator", *, operator: bool = True) -> "Client":
        """A client of a release's API, with a token of this caller."""
        key = release, sub, operator
        if key not in self._clients:
            groups = ["operators"] if operator else []
            token = self.pool.token(*groups, sub=sub, exp=int(time.time()) + _TOKEN_S)
            self._clients[key] = httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{self._ports[release]}",
                headers={"authorization": f"Bearer {token}"},
                timeout=60,
            )
        return self._clients[key]

    @property
    def apis(self) -> list[str]:
        """The releases whose API runs."""
        return sorted(name.removesuffix("-api") for name in self.running if name.endswith("-api"))

    def logged(self, name: str, *events: str) -> list[dict[str, object]]:
        """The lines of a program's log with one of these events."""
        lines = self.programs[name].log.read_bytes().splitlines()
        decoded = [msgspec.json.decode(line) for line in lines if line.startswith(b"{")]
        return [line for line in decoded if line.get("event") in events]

    async def build(self, build_id: str) -> Build:
        """A build once it has ended."""
        return await build_until(self.resources, build_id, lambda build: not build.open, _WAIT_S)

    async def k9(self, release: str, *arguments: str, **environ: str) -> str:
        """What a release's command printed.

        Raises:
            AssertionError: it failed.
        """
        chosen = self.releases[release]
        process = await asyncio.create_subprocess_exec(
            *chosen.k9,
            *arguments,
            cwd=chosen.source,
            env=os.environ | self.environ(chosen) | environ,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        out, error = await process.communicate()
        text = (
            f"k9 {' '.join(arguments)} of {release}: {error.decode()[-2000:]}{out.decode()[-2000:]}"
        )
        assert process.returncode == 0, text
        return out.decode()

    async def aclose(self) -> None:
        """Ends what runs."""
        for client in self._clients.values():
            await client.aclose()
        await asyncio.gather(*(program.stop() for program in self.programs.values()))


Client = httpx.AsyncClient


@asynccontextmanager
async def open_environment(*releases: Release) -> AsyncIterator[Environment]:
    """An emulator, a Valkey and a pool, with the tables that the first release makes.

    Then the last one's `create_tables` is applied to them, as its deployment would.
    """
    os.environ.update(CREDENTIALS)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k9-upgrade-")))
        url = stack.enter_context(running("ministack"))
        redis_url = stack.enter_context(running_valkey())
        pool = await stack.enter_async_context(running_pool())
        settings = msgspec.structs.replace(settings_for(url), redis_url=redis_url)
        await _first_tables(settings, releases[0])
        settings = await create_tables(settings)
        resources = await stack.enter_async_context(open_resources(settings))
        environment = Environment(resources, pool, directory, releases)
        stack.push_async_callback(environment.aclose)
        yield environment


async def _first_tables(settings: Settings, release: Release) -> None:
    process = await asyncio.create_subprocess_exec(
        *release.k9,
        "tables",
        "create",
        cwd=release.source,
        env=os.environ
        | {
            "K9_STACK": "off",
            "AWS_ENDPOINT_URL": settings.aws.endpoint_url or "",
            "AWS_REGION": settings.aws.region,
            "K9_ENVIRONMENT": settings.environment,
        },
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == 0, error.decode()


async def until(holds: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Waits until something holds; after how many seconds it did.

    Raises:
        TimeoutError: it did not in time.
    """
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            if await holds():
                return time.monotonic() - began
            await asyncio.sleep(0.02)


def code(reply: httpx.Response, *expected: int) -> httpx.Response:
    """The reply, which must have one of these statuses."""
    request = reply.request
    told = f"{request.method} {request.url}: {reply.status_code} {reply.text[:300]}"
    assert reply.status_code in expected, told
    return reply
