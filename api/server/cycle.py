"""One request and its reply on a connection, and what answers in place of the application."""

import asyncio
from typing import Any, Final, cast

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.http.context import request_id_of
from api.http.problems import problem_reply
from api.server.connections import ConnectionTable
from core.errors import OverShare, Unreadable

TOO_MANY: Final = 429
ADDRESS_FULL: Final = OverShare("this address has too much open; try again once some is done")


class ReplyWriter:
    """Writes the header of a reply together with what follows it: one system call, one packet."""

    __slots__ = ("_header", "_transport", "holds_next")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._header = b""
        self.holds_next = False
        """What is written next is a header, and a body follows at once."""

    def write(self, data: bytes) -> None:
        """Writes, or holds a header until what follows is written."""
        if self.holds_next:
            self.holds_next = False
            self._header = data
        elif self._header:
            header, self._header = self._header, b""
            self._transport.write(header + data)
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection once all is written."""
        if self._header:
            self.write(b"")
        self._transport.close()


class Cycle(RequestResponseCycle):
    """One request and its reply."""

    def __init__(self, transport: asyncio.Transport, **given: Any) -> None:
        self._writer = ReplyWriter(transport)
        super().__init__(transport=cast("asyncio.Transport", self._writer), **given)

    broken = False
    """What came of the body breaks its framing."""
    given_up = False
    """The application knows."""
    closes = False
    """The connection is closed after the reply."""

    async def receive(self) -> ASGIReceiveEvent:
        """The next part of the body.

        Raises:
            Unreadable: the body breaks its framing. Told once; from then on nobody is there.
        """
        if self._framed():
            message = await super().receive()
            if self._framed() or message["type"] == "http.disconnect":
                return message
        if self.given_up:
            return {"type": "http.disconnect"}
        self.given_up = True
        raise Unreadable("the body is not framed as HTTP/1.1 has it: a bad chunk, or trailer")

    def _framed(self) -> bool:
        return not self.broken

    async def send(self, message: ASGISendEvent) -> None:
        """Sends a part of the reply."""
        if not self.response_started and self.more_body:
            self.keep_alive = False  # the rest of the body would be taken for the next request
        elif self.response_started and not self.keep_alive:
            self.closes = self.keep_alive = True  # the protocol closes, when all has been read
        if not self.response_started and self.scope["method"] != "HEAD":
            self._writer.holds_next = True
        await super().send(message)


async def too_many(scope: Any, _receive: Any, send: Any) -> None:
    """Answers a request of an address that has its share in progress."""
    reply = problem_reply(ADDRESS_FULL)
    given = next((v for name, v in scope["headers"] if name == b"x-request-id"), b"")
    headers = [
        (b"content-type", reply.content_type.encode()),
        (b"content-length", str(len(reply.body)).encode()),
        (b"x-request-id", request_id_of(given)),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})


def counted(app: Any, table: ConnectionTable, client: str) -> Any:
    """The application, which gives back the client's share when it is done."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            table.end_request(client)

    return answer
