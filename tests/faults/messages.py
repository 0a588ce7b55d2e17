"""HTTP/1.1 messages as they pass through a proxy, each read to its end.

Enough for DynamoDB's protocol: requests are POSTs, and a reply is framed by its length, by chunks,
or by the end of its connection.
"""

import asyncio

import msgspec

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect"})


class Message(msgspec.Struct, frozen=True):
    """A request or a reply; its body without chunks."""

    start: bytes
    """The first line, without its end."""
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""

    def header(self, name: bytes) -> bytes:
        """The value of a header, named in lower case; empty where it is not there."""
        return next((value for known, value in self.headers if known.lower() == name), b"")

    def encoded(self) -> bytes:
        """The message as it is sent on: framed by the length of its body, whatever it came with."""
        kept = (pair for pair in self.headers if pair[0].lower() not in _FRAMING)
        lines = (self.start, *(name + b": " + value for name, value in kept))
        return b"%s\r\ncontent-length: %d\r\n\r\n%s" % (
            b"\r\n".join(lines),
            len(self.body),
            self.body,
        )

    @property
    def status(self) -> int:
        """Of a reply."""
        return int(self.start.split()[1])

    @property
    def ends_connection(self) -> bool:
        """Whether its sender closes the connection after it."""
        return self.header(b"connection").lower() == b"close" or b"HTTP/1.0" in self.start


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Message | None:
    """The next request; None where the client has no more. A client that waits to be asked is.

    Raises:
        asyncio.IncompleteReadError: the client ended in the middle of one.
    """
    try:
        head = await _read_head(reader)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    if head.header(b"expect").lower() == b"100-continue":
        writer.write(_CONTINUE)
        await writer.drain()
    return msgspec.structs.replace(head, body=await _read_body(head, reader, open_ended=False))


async def read_reply(reader: asyncio.StreamReader) -> Message:
    """The next final reply; interim ones are left out.

    Raises:
        asyncio.IncompleteReadError: the server ended before its reply did.
    """
    while (head := await _read_head(reader)).status < 200:
        pass
    return msgspec.structs.replace(head, body=await _read_body(head, reader, open_ended=True))


async def _read_head(reader: asyncio.StreamReader) -> Message:
    lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines[1:])
    return Message(lines[0], tuple((name.strip(), value.strip()) for name, _, value in pairs))


async def _read_body(head: Message, reader: asyncio.StreamReader, *, open_ended: bool) -> bytes:
    """`open_ended` where a message that tells no length goes on to the connection's end."""
    if head.header(b"transfer-encoding").lower() == b"chunked":
        return await _read_chunks(reader)
    length = head.header(b"content-length")
    if length:
        return await reader.readexactly(int(length))
    return await reader.read() if open_ended else b""


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return bytes(body)
