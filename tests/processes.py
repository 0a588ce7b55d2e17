"""Programs of K9 as processes of their own, started by the fork server of this pytest process."""

import asyncio
import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.captured.secrets_of_settings import DIRECTORY
from tests.fork_server import LENGTH, NUMBER, Order

_ROOT: Final = Path(__file__).parent.parent
SHARED: Final = "TEST_FORK_SERVER"
"""The variable with the socket of a fork server that runs already."""
_LIMIT: Final = 1 << 24
"""Bytes of a line of a process's output."""


class Process:
    """A process, with the names that asyncio's has."""

    def __init__(self, pid: int, connection: socket.socket, stdin: int | None) -> None:
        self.pid = pid
        self._stdin = stdin
        self.returncode: int | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._ending = asyncio.create_task(self._follow(connection))

    async def _follow(self, connection: socket.socket) -> None:
        with connection:
            data = await asyncio.get_running_loop().sock_recv(connection, NUMBER.size)
        self.returncode = NUMBER.unpack(data)[0] if data else -signal.SIGKILL

    async def wait(self) -> int:
        """Its status once it has ended, negative for a signal."""
        await asyncio.shield(self._ending)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal; one that comes too late is none."""
        if self.returncode is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def communicate(self, data: bytes | None = None) -> tuple[bytes, bytes]:
        """What it wrote to standard output and error until it ended."""

        async def read(stream: asyncio.StreamReader | None) -> bytes:
            return b"" if stream is None else await stream.read()

        feeding = asyncio.to_thread(self._feed, data or b"")
        _, out, error = await asyncio.gather(feeding, read(self.stdout), read(self.stderr))
        await self.wait()
        return out, error

    def close_stdin(self) -> None:
        """Ends its standard input, unless `communicate` did."""
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def _feed(self, data: bytes) -> None:
        if self._stdin is not None:
            with suppress(BrokenPipeError), os.fdopen(self._stdin, "wb", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
            self._stdin = None


async def start(
    program: str,
    *arguments: str,
    environ: Mapping[str, str],
    directory: Path | None = None,
    stdin: int | None = None,
    stdout: Any = DEVNULL,
    stderr: Any = DEVNULL,
    leads_group: bool = False,
) -> Process:
    """Starts `api`, `worker` or `k9`, as `python -m` or the command would, without the imports.

    Args:
        program: What to run.
        arguments: Of the command line.
        environ: All of its environment.
        directory: Where it runs; this one's unless given.
        stdin: PIPE, or nothing to read.
        stdout: PIPE, DEVNULL or an open file.
        stderr: Likewise, or STDOUT.
        leads_group: Whether it has a process group of its own, which signals may be sent to.
    """
    where = str(directory or Path.cwd())
    order = Order(program, list(arguments), dict(environ), where, leads_group)
    theirs: list[int] = []
    ours: dict[str, int] = {}
    for name, wanted in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
        if wanted == PIPE:
            reading, writing = os.pipe()
            theirs.append(reading if name == "stdin" else writing)
            ours[name] = writing if name == "stdin" else reading
        elif wanted == STDOUT:
            theirs.append(os.dup(theirs[1]))
        elif wanted is None or wanted == DEVNULL:
            theirs.append(os.open(os.devnull, os.O_RDWR))
        else:
            theirs.append(os.dup(wanted if isinstance(wanted, int) else wanted.fileno()))
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(fork_server())
    data = msgspec.json.encode(order)
    socket.send_fds(connection, [LENGTH.pack(len(data))], theirs)
    connection.sendall(data)
    for fd in theirs:
        os.close(fd)
    pid = NUMBER.unpack(connection.recv(NUMBER.size))[0]
    connection.setblocking(False)
    process = Process(pid, connection, ours.get("stdin"))
    if "stdout" in ours:
        process.stdout = await _reader(ours["stdout"])
    if "stderr" in ours:
        process.stderr = await _reader(ours["stderr"])
    return process


async def _reader(fd: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    return reader


@cache
def fork_server() -> str:
    """The socket of the fork server, which is started when first needed and ends with pytest.

    Processes that share the tests of a run share that of the process that started them. What is
    asked of it is answered once it has imported what its children need.
    """
    shared = os.environ.get(SHARED)
    if shared:
        return shared
    directory = tempfile.TemporaryDirectory(prefix="k9-forks-")
    path = f"{directory.name}/socket"
    # Its children write copies of their logs, under their own names.
    environ = {name: value for name, value in os.environ.items() if name != DIRECTORY}
    environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported, and a build's value
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server", path],
        cwd=_ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def stop(closing: Any = server.stdin) -> None:
        closing.close()
        server.wait()
        directory.cleanup()

    atexit.register(stop)
    with server.stdout:
        assert server.stdout.readline() == b"listening\n", "the fork server did not start"
    return path
