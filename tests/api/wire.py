"""A listener in this process, and clients that write bytes to it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from api.app import create_app
from api.entrypoint import Entrypoint
from api.server.gate import Gate
from api.server.listener import Server, bound_socket
from tests.api.conftest import MODEL, Service
from tests.api.serving import client_of, eventually

ALL_S = 30
"""For one exchange, on a busy machine."""
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listener:
    """An application behind a server, and its port."""

    def __init__(self, app: Entrypoint, server: Server, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port

    async def connect(self, source: str = "127.0.0.1") -> Stream:
        """A connection from a loopback address."""
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))

    async def send(self, *parts: bytes) -> bytes:
        """All that comes back until the server closes; each part is written by itself."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(ALL_S):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                return await reader.read()
        finally:
            await closed(writer)

    async def until_open(self, count: int) -> None:
        """Waits until so many connections are open."""
        async with asyncio.timeout(ALL_S):
            while self.server.table.all.count != count:  # noqa: ASYNC110 - the table has no event
                await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(
    service: Service, *, gate_class: type[Gate] = Gate, **http: Any
) -> AsyncIterator[Listener]:
    """A listener with these limits, until it has drained."""
    limits = msgspec.structs.replace(service.settings.http, **{"idle_timeout_s": 5, **http})
    settings = msgspec.structs.replace(service.settings, http=limits)
    app = create_app(settings, service.resources)
    started = asyncio.Event()
    gate = gate_class(limits, app.caller_of)
    server = Server(app, limits, started=started.set, gate=gate)
    with bound_socket(msgspec.structs.replace(limits, host="127.0.0.1"), 0, "") as bound:
        port = int(bound.getsockname()[1])
        serving = asyncio.create_task(server.serve([bound]))
        async with asyncio.timeout(ALL_S):
            await started.wait()
        try:
            async with client_of(app, service.pool.token()) as client:
                await eventually(client, MODEL)
            yield Listener(app, server, port)
        finally:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            server.stop()
            await serving


async def closed(writer: asyncio.StreamWriter) -> None:
    """Closes a connection, however it stands."""
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        return


async def at_end(stream: Stream) -> bytes:
    """What comes until the server closes, or resets."""
    reader, writer = stream
    try:
        async with asyncio.timeout(ALL_S):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        await closed(writer)


async def reply_of(stream: Stream) -> tuple[int, dict[str, str], bytes]:
    """Status, header and body of the next reply."""
    reader, _ = stream
    async with asyncio.timeout(ALL_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (n.partition(": ") for n in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(first.split()[1]), headers, body


def request(
    line: str, token: str = "", body: bytes = b"", *more: str, host: str = "k9.test"
) -> bytes:
    """A request as text, with a length where it has a body."""
    lines = [f"{line} HTTP/1.1", f"Host: {host}", *more]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def small_window(port: int) -> socket.socket:
    """A socket that takes little before it is read."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    return made
