"""The `k9` command as a process of its own, against an emulator."""

import os
from asyncio.subprocess import PIPE
from pathlib import Path

from core.dynamo.client import open_dynamo
from core.settings import Settings
from deploy.callbacks import ignore
from deploy.data.bulk import count_items
from tests.processes import Process, start

NO_REDIS = "redis://127.0.0.1:1/0"
"""Where none listens: the tables are the truth."""


async def start_k9(
    settings: Settings, directory: Path, *arguments: str, stdin: int | None = None
) -> Process:
    """A command that has begun, in this directory."""
    environ = os.environ | {
        "AWS_ENDPOINT_URL": settings.aws.endpoint_url or "",
        "K9_ENVIRONMENT": settings.environment,
        "REDIS_URL": NO_REDIS,
    }
    return await start(
        "k9",
        *arguments,
        environ=environ,
        directory=directory,
        stdin=stdin,
        stdout=PIPE,
        stderr=PIPE,
    )


async def run_k9(settings: Settings, directory: Path, *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    process = await start_k9(settings, directory, *arguments)
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def item_counts(settings: Settings) -> dict[str, int]:
    """How many items each table has, by its full name."""
    async with open_dynamo(settings) as dynamo:
        return await count_items(dynamo, settings, ignore)


async def kill(process: Process) -> None:
    """Ends a command by SIGKILL, which must find it at work."""
    process.kill()
    await process.communicate()
    assert process.returncode == -9
