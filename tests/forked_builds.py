"""Builds of a worker in this pytest process, as forks of the fork server.

Half a second of processor time is what a build process needs to import numpy and FAISS, and a build
of a few rows needs a tenth of that. Processes of a worker of its own, and the tests of the build
process itself, begin as they do on a machine.
"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from tests.fork_server import BUILD
from tests.processes import Process, start

_FORKED: ContextVar[bool] = ContextVar("forked", default=False)
_ENDING: Final[set[asyncio.Task[None]]] = set()
_BUILDING: Final = (sys.executable, "-m", BUILD)
_exec: Final = asyncio.create_subprocess_exec


@contextmanager
def forked_builds() -> Iterator[None]:
    """Has builds that this task, and those it starts, begin meanwhile be forks."""
    token = _FORKED.set(True)
    try:
        yield
    finally:
        _FORKED.reset(token)


async def _begin(*command: Any, **options: Any) -> asyncio.subprocess.Process | Process:
    """What `asyncio.create_subprocess_exec` does, or the same by a fork."""
    if not _FORKED.get() or command[:3] != _BUILDING:  # a test may have other programs in its place
        return await _exec(*command, **options)
    process = await start(
        BUILD,
        *command[3:],
        environ=options["env"],
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        leads_group=options["start_new_session"],
    )
    ending = asyncio.create_task(_close(process))
    _ENDING.add(ending)
    ending.add_done_callback(_ENDING.discard)
    return process


async def _close(process: Process) -> None:
    """Its standard input tells a build process that the worker is there."""
    await process.wait()
    process.close_stdin()


_asyncio: Any = asyncio
_asyncio.create_subprocess_exec = _begin
