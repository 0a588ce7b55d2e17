"""A loopback TCP proxy that sits before any dependency and makes it fail on demand."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import msgspec

_CHUNK_BYTES = 64 * 1024
_THROTTLED = (
    b'{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",'
    b'"message":"throttled by the fault kit"}'
)


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to connections from now on. The rates are of new connections, 0 to 1."""

    latency_s: float = 0.0
    """Before each chunk of an answer."""
    refuse: bool = False
    """Every new connection is reset at once, and the open ones are cut: the part is gone."""
    hang_rate: float = 0.0
    """Connections that are taken and never answered."""
    reset_rate: float = 0.0
    """Connections that are reset when their first answer begins."""
    cut_rate: float = 0.0
    """Connections whose first answer ends in the middle."""
    throttle_rate: float = 0.0
    """HTTP requests that DynamoDB turns away; the request never reaches it."""


class Proxy:
    """Forwards one port to another, with faults that can be changed while it runs."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self._target = host, port
        self._chance = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.faults = Faults()
        self.injected: Counter[str] = Counter()
        """Fault → how often it was injected."""
        self.port = 0

    async def start(self) -> Self:
        """Listens on a free loopback port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def set(self, faults: Faults) -> None:
        """Changes what happens from now on; `refuse` also cuts what is open."""
        self.faults = faults
        if faults.refuse:
            for writer in list(self._writers):
                _reset(writer)

    async def close(self) -> None:
        """Ends every connection and the listener."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in list(self._writers):
            _reset(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            await self._serve(reader, writer)
        except OSError:
            pass  # a peer that went away is what a proxy sees all day
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.refuse:
            self.injected["refused"] += 1
            _reset(writer)
            return
        if self._chance.random() < self.faults.hang_rate:
            self.injected["hung"] += 1
            while await reader.read(_CHUNK_BYTES):
                pass
            return
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers.add(there_writer)
        up = asyncio.create_task(self._up(reader, writer, there_writer))
        try:
            await self._down(there_reader, writer)
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            self._writers.discard(there_writer)
            there_writer.close()

    async def _up(
        self,
        reader: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        there: asyncio.StreamWriter,
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            starts = chunk.startswith((b"POST ", b"GET ", b"PUT "))
            if starts and self._chance.random() < self.faults.throttle_rate:
                self.injected["throttled"] += 1
                await _rest_of_request(chunk, reader)
                back.write(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-amz-json-1.0\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(_THROTTLED), _THROTTLED)
                )
                await back.drain()
                continue
            there.write(chunk)
            await there.drain()
        there.write_eof()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = True
        while chunk := await reader.read(_CHUNK_BYTES):
            if self.faults.latency_s:
                self.injected["delayed"] += 1
                await asyncio.sleep(self.faults.latency_s)
            if first:
                first = False
                if self._chance.random() < self.faults.reset_rate:
                    self.injected["reset"] += 1
                    _reset(writer)
                    return
                if self._chance.random() < self.faults.cut_rate:
                    self.injected["cut"] += 1
                    writer.write(chunk[: len(chunk) // 2])
                    await writer.drain()
                    return
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()


@asynccontextmanager
async def proxied(port: int, *, host: str = "127.0.0.1", seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy before a port of this machine."""
    proxy = await Proxy(host, port, seed).start()
    try:
        yield proxy
    finally:
        await proxy.close()


async def _rest_of_request(start: bytes, reader: asyncio.StreamReader) -> None:
    """Reads a request to its end, so that the connection can be used for the next."""
    while b"\r\n\r\n" not in start:
        more = await reader.read(_CHUNK_BYTES)
        if not more:
            return
        start += more
    head, _, body = start.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    left = length - len(body)
    while left > 0:
        more = await reader.read(min(left, _CHUNK_BYTES))
        if not more:
            return
        left -= len(more)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection without a word."""
    writer.transport.abort()
