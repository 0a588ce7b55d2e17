"""Worker processes as a machine runs them, to be stopped and killed."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from core.models import Build
from core.resources import Resources
from core.settings import Settings
from tests.processes import Process, start

LEASE_S = 2.0


def environ_of(settings: Settings, **more: str) -> dict[str, str]:
    """The environment that says what these settings say, with short leases."""
    return {
        **os.environ,
        "K9_ENVIRONMENT": settings.environment,
        "AWS_ENDPOINT_URL": settings.aws.endpoint_url or "",
        "AWS_REGION": settings.aws.region,
        "K9_BUCKET": settings.aws.bucket or "",
        "K9_DEADLINE_S": f"{settings.aws.deadline_s:g}",
        "K9_READ_TIMEOUT_S": f"{settings.aws.read_timeout_s:g}",
        "REDIS_URL": settings.redis_url,
        "K9_WORK_DIR": str(settings.building.work_dir),
        "K9_CACHE_DIR": str(settings.serving.cache_dir),
        "K9_LEASE_S": f"{LEASE_S:g}",
        "K9_HEARTBEAT_S": "0.5",
        "K9_RECONCILE_S": "0.5",
        "K9_WORKER_METRICS_PORT": "0",
        **more,
    }


@asynccontextmanager
async def running(settings: Settings, **more: str) -> AsyncIterator[Process]:
    """A worker process that has started, and is killed if it is still there at the end."""
    process = await start("worker", environ=environ_of(settings, **more), stderr=PIPE)
    started = asyncio.Event()
    reading = asyncio.create_task(_read(process, started))
    try:
        async with asyncio.timeout(60):
            await started.wait()
        yield process
    finally:
        reading.cancel()
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def _read(process: Process, started: asyncio.Event) -> None:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        if b"worker started" in line:
            started.set()
        if os.environ.get("K9_TEST_LOGS"):
            sys.stdout.write(line.decode())


async def until(
    resources: Resources, build_id: str, holds: Callable[[Build], bool], seconds: float = 60
) -> Build:
    """The build, once something holds of it."""
    async with asyncio.timeout(seconds):
        while True:
            build = await resources.builds.get_build(build_id)
            if holds(build):
                return build
            await asyncio.sleep(0.05)


def children_of(work_dir: Path) -> list[int]:
    """The build processes of this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"worker.building.build_process" in command and bytes(work_dir) in command:
                found.append(int(entry.name))
    return found


def parent_of(pid: int) -> int:
    """The process that started another."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[1])
