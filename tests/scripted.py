"""A server that answers as it is told to, for what no emulator does: break off, hang, fail."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import Final

HANG: Final = b"hang"
"""No answer within any test's patience."""
CLOSE: Final = b""
"""The connection is closed without an answer."""


def answer(status: int, body: bytes, *, length: int | None = None, headers: str = "") -> bytes:
    r"""A reply's bytes.

    Args:
        status: Of HTTP.
        body: As it is sent.
        length: The length it claims; over the body's own, the body is cut short.
        headers: Whole lines, each with its `\r\n`.
    """
    return (
        f"HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}"
        f"content-length: {len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


class ScriptedServer:
    """Answers each request with the next reply, with the last one for ever."""

    def __init__(self, *replies: bytes) -> None:
        self._replies: Iterator[bytes] = chain(replies, repeat(replies[-1]))
        self.requests: list[str] = []
        """The first line of each request that came."""
        self.asked = asyncio.Event()
        """Set once the first request is there."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serves until the end of the block; yields the address."""
        listener = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        finally:
            listener.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
            await reader.readexactly(int(length or 0))
            self.requests.append(head.splitlines()[0])
            self.asked.set()
            reply = next(self._replies)
            if reply == HANG:
                await asyncio.sleep(60)
            writer.write(reply)
            await writer.drain()
        finally:
            writer.close()
