"""A loopback TCP proxy that sits before any dependency and makes it fail on demand."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import msgspec

from tests.faults import dynamodb
from tests.faults.messages import Message, read_reply, read_request

_CHUNK_BYTES = 64 * 1024

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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
    """Calls of DynamoDB's that are turned away; they never reach it. For its proxy alone."""
    unprocessed_rate: float = 0.0
    """BatchWriteItem calls, of those not turned away, of which only a part reaches DynamoDB,
    sometimes none, and the rest comes back as UnprocessedItems. For its proxy alone."""


class Proxy:
    """Forwards one port to another, with faults that can be changed while it runs.

    Before DynamoDB it passes on whole HTTP messages, and can tell one call from another; before
    anything else, bytes as they come.
    """

    def __init__(self, host: str, port: int, seed: int, *, dynamodb: bool) -> None:
        self._target = host, port
        self._dynamodb = dynamodb
        self._chance = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.faults = Faults()
        self.injected: Counter[str] = Counter()
        """Fault → how often it was injected."""
        self.calls: Counter[str] = Counter()
        """Operation of DynamoDB's → how often it was asked for."""
        self.port = 0

    async def start(self) -> Self:
        """Listens on a free loopback port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def set(self, faults: Faults) -> None:
        """Changes what happens from now on; `refuse` also cuts what is open.

        Raises:
            ValueError: a fault of DynamoDB's is asked of a proxy that is not before it.
        """
        if (faults.throttle_rate or faults.unprocessed_rate) and not self._dynamodb:
            raise ValueError("only a proxy made with dynamodb=True tells calls apart")
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
        except (OSError, asyncio.IncompleteReadError):
            pass  # a peer that went away is what a proxy sees all day
        except asyncio.CancelledError:
            pass  # `close`; what called this would take it for an error
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
        if self._dynamodb:
            await self._exchange(reader, writer)
        else:
            await self._pump(reader, writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Bytes both ways, as they come."""
        async with self._there() as (there_reader, there_writer):
            up = asyncio.create_task(_up(reader, there_writer))
            try:
                first = True
                while chunk := await there_reader.read(_CHUNK_BYTES):
                    if not await self._give(chunk, writer, first=first):
                        return
                    first = False
                with contextlib.suppress(OSError, RuntimeError):
                    writer.write_eof()
            finally:
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests one after the other, each read whole before it is decided on."""
        first = True
        async with contextlib.AsyncExitStack() as stack:
            there: _Connection | None = None
            while (request := await read_request(reader, writer)) is not None:
                part, split = self._let_through(request)
                reply = None
                if part is not None:
                    if there is None or there[0].at_eof():
                        there = await stack.enter_async_context(self._there())
                    there[1].write(part.encoded())
                    await there[1].drain()
                    reply = await read_reply(there[0])
                if split is not None:
                    reply = split.answer(reply)
                answer = dynamodb.throttled() if reply is None else reply
                if not await self._give(answer.encoded(), writer, first=first):
                    return
                if request.ends_connection or answer.ends_connection:
                    return
                first = False

    def _let_through(self, request: Message) -> tuple[Message | None, dynamodb.Split | None]:
        """What of a request goes on to DynamoDB, and how it was split, if it was."""
        operation = dynamodb.operation_of(request)
        if operation is None:
            return request, None
        self.calls[operation] += 1
        if self._chance.random() < self.faults.throttle_rate:
            self.injected["throttled"] += 1
            return None, None
        if (
            operation == dynamodb.BATCH_WRITE
            and self._chance.random() < self.faults.unprocessed_rate
        ):
            split = dynamodb.split(request, self._chance)
            self.injected["taken in part"] += 1
            self.injected["items unprocessed"] += split.items
            return split.request, split
        return request, None

    async def _give(self, data: bytes, writer: asyncio.StreamWriter, *, first: bool) -> bool:
        """Passes on an answer, or a chunk of one; False where that ended the connection."""
        if self.faults.latency_s:
            self.injected["delayed"] += 1
            await asyncio.sleep(self.faults.latency_s)
        if first and self._chance.random() < self.faults.reset_rate:
            self.injected["reset"] += 1
            _reset(writer)
            return False
        if first and self._chance.random() < self.faults.cut_rate:
            self.injected["cut"] += 1
            writer.write(data[: len(data) // 2])
            await writer.drain()
            return False
        writer.write(data)
        await writer.drain()
        return True

    @asynccontextmanager
    async def _there(self) -> AsyncIterator[_Connection]:
        """A connection to the part itself."""
        reader, writer = await asyncio.open_connection(*self._target)
        self._writers.add(writer)
        try:
            yield reader, writer
        finally:
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def proxied(
    port: int, *, host: str = "127.0.0.1", seed: int = 0, dynamodb: bool = False
) -> AsyncIterator[Proxy]:
    """A proxy before a port of this machine."""
    proxy = await Proxy(host, port, seed, dynamodb=dynamodb).start()
    try:
        yield proxy
    finally:
        await proxy.close()


async def _up(reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        there.write(chunk)
        await there.drain()
    there.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection without a word."""
    writer.transport.abort()
