"""A server of canned replies in DynamoDB's form, cheap enough to keep up with any client."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, cast
from zlib import crc32

import uvloop

from tests.emulators import free_port

Respond = Callable[[str, bytes], bytes]
"""From the operation and the body of a request to the body of the reply."""
_HEAD_END: Final = b"\r\n\r\n"


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with content-length, kept alive: what AWS clients send."""

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(_HEAD_END)) >= 0:
            fields = dict(
                line.split(": ", 1) for line in self._received[:end].decode().split("\r\n")[1:]
            )
            lower = {name.lower(): value for name, value in fields.items()}
            start = end + len(_HEAD_END)
            stop = start + int(lower["content-length"])
            if len(self._received) < stop:
                return
            operation = lower["x-amz-target"].rpartition(".")[2]
            body = self._respond(operation, bytes(self._received[start:stop]))
            del self._received[:stop]
            assert self._transport is not None
            self._transport.write(_head(body) + body)


def _head(body: bytes) -> bytes:
    """The status line and headers that DynamoDB sends."""
    return (
        "HTTP/1.1 200 OK\r\nServer: Server\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        "Content-Type: application/x-amz-json-1.0\r\n"
        f"Content-Length: {len(body)}\r\nConnection: keep-alive\r\n"
        "x-amzn-RequestId: 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ABCDEF\r\n"
        f"x-amz-crc32: {crc32(body)}\r\n\r\n"
    ).encode()


def serve(port: int, respond: Respond) -> None:
    """Serves until the process is ended."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(respond), "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(run())


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[str]:
    """`python -m MODULE --serve PORT ARGUMENTS` until the end of the block; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", module, "--serve", str(port), *arguments]
    server = subprocess.Popen(command)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    """Returns once something listens on the port."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the server of canned replies did not start")
