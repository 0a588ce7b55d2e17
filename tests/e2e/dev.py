"""A real `k9 dev` on free ports, and commands in its directory."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import msgspec

from deploy.local.processes import PidFile
from tests.captured import path_with
from tests.processes import Process, start

_ROOT = Path(__file__).parents[2]
_K9 = [sys.executable, "-c", "from deploy.cli.main import main; main()"]
_START_S = 100.0


class Dev:
    """A running `k9 dev`, and all that it printed."""

    def __init__(self, directory: Path, process: asyncio.subprocess.Process | Process) -> None:
        self.directory = directory
        self.process = process
        self.output = ""

    async def until(self, pattern: str) -> str:
        """What it has printed once the pattern is in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(_START_S):
            while not re.search(pattern, self.output):
                line = await self.process.stdout.readline()
                assert line, f"k9 dev ended:\n{self.output}"
                self.output += line.decode()
        return self.output

    async def stop(self, number: signal.Signals = signal.SIGINT) -> float:
        """Stops it; in how many seconds."""
        began = monotonic()
        self.process.send_signal(number)
        rest, _ = await self.process.communicate()
        self.output += rest.decode()
        return monotonic() - began

    def parts(self) -> dict[str, PidFile]:
        """The processes it runs, by name."""
        return {
            path.stem: msgspec.json.decode(path.read_bytes(), type=PidFile)
            for path in (self.directory / ".k9" / "pids").glob("*.json")
        }


def environ_of_commands() -> dict[str, str]:
    """The environment of commands in another directory: they find the tests, and no AWS."""
    return os.environ | {"PYTHONPATH": path_with(_ROOT), "AWS_PROFILE": "someone-elses"}


@asynccontextmanager
async def running_dev(directory: Path, *options: str, **environ: str) -> AsyncIterator[Dev]:
    """`k9 dev` in a directory, stopped at the end; says nothing of whether it is ready."""
    words = ("dev", "--port", "0", *options)
    environ = environ_of_commands() | environ
    process: asyncio.subprocess.Process | Process
    if "PYTEST_VERSION" in os.environ:
        process = await start(
            "k9", *words, environ=environ, directory=directory, stdout=PIPE, stderr=STDOUT
        )
    else:
        process = await asyncio.create_subprocess_exec(
            *_K9, *words, cwd=directory, env=environ, stdout=PIPE, stderr=STDOUT
        )
    dev = Dev(directory, process)
    try:
        yield dev
    finally:
        if process.returncode is None:
            await dev.stop()


async def run_in(directory: Path, *arguments: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    process = await start(
        "k9",
        *arguments,
        environ=environ_of_commands(),
        directory=directory,
        stdout=PIPE,
        stderr=PIPE,
    )
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()
