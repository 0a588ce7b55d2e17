"""One request and its response on a connection, and what answers in place of the application."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.http.context import WHOLE_BODY, request_id_of
from api.http.problems import problem_reply
from core import telemetry
from core.errors import OverShare, Unreadable

TOO_MANY: Final = 429
ADDRESS_FULL: Final = OverShare("this address has too much open; try again once some is done")
_WITHOUT_BODY: Final = frozenset({204, 304})

_log = telemetry.logger(__name__)


@dataclass(slots=True, eq=False)
class Cycle:
    """The ASGI interface of one request.

    uvicorn's own writes header and body of a response apart, and searches each header field twice
    by a regular expression: a tenth of the time of a small response.
    """

    _connection: HttpToolsProtocol
    scope: Any
    keep_alive: bool
    """Whether the connection may take another request after the response."""
    _waiting_for_continue: bool
    body: bytearray = field(default_factory=bytearray)
    """What has come and was not received."""
    more_body: bool = True
    broken: bool = False
    """What came of the body breaks its framing."""
    disconnected: bool = False
    message_event: asyncio.Event = field(default_factory=asyncio.Event)
    response_started: bool = False
    response_complete: bool = False
    _disconnect_told: bool = False
    _header: bytes = b""
    """Written with the first part of the body: one system call, one packet."""
    _chunked: bool = False
    _length_left: int = 0

    def __post_init__(self) -> None:
        """Lets the application have a body that has come whole at once."""
        self.scope[WHOLE_BODY] = self.whole_body

    async def run_asgi(self, app: Any) -> None:
        """Runs the application; a response that it leaves incomplete ends the connection."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - nobody else is there to catch it
            _log.error("application failed", exc_info=error)
        finally:
            if not self.response_complete and not self.disconnected:
                self._connection.transport.close()

    def whole_body(self) -> bytes | None:
        """The body, where all of it has come; else None. Spares what waiting for it costs."""
        if self.more_body or self.broken or self.disconnected or self.response_complete:
            return None
        body, self.body = bytes(self.body), bytearray()
        return body

    async def receive(self) -> ASGIReceiveEvent:
        """The next part of the body.

        Raises:
            Unreadable: the body breaks its framing. Raised once; then the client is gone.
        """
        transport, flow = self._connection.transport, self._connection.flow
        if not self.broken:
            if self._waiting_for_continue and not transport.is_closing():
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._waiting_for_continue = False
            if not self.disconnected and not self.response_complete:
                flow.resume_reading()
                await self.message_event.wait()
                self.message_event.clear()
        if self.disconnected or self.response_complete or self._disconnect_told:
            return {"type": "http.disconnect"}
        if self.broken:
            self._disconnect_told = True
            raise Unreadable("the body is not framed as HTTP/1.1 has it: a bad chunk, or trailer")
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: ASGISendEvent) -> None:
        """Sends a part of the response.

        Raises:
            RuntimeError: the application's messages are no valid response.
        """
        flow = self._connection.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._start(message)
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            part: Any = message
            self._send_body(part.get("body", b""), more=part.get("more_body", False))
        else:
            raise RuntimeError(f"the application sent {kind} out of order")

    def _start(self, message: Any) -> None:
        self.response_started = True
        self._waiting_for_continue = False
        if self.more_body:
            self.keep_alive = False  # the rest of the body would be taken for the next request
        status: int = message["status"]
        fields: list[tuple[bytes, bytes]] = message["headers"]
        lines = [STATUS_LINE[status]]
        length = None
        for name, value in (*self._connection.server_state.default_headers, *fields):
            if name == b"content-length":
                length = int(value)
            lines.append(b"%b: %b\r\n" % (name, value))
        self._length_left = length or 0
        if length is None and status not in _WITHOUT_BODY and self.scope["method"] != "HEAD":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        header = b"".join(lines)
        if header.count(b"\n") != len(lines) or header.count(b"\r") != len(lines) or 0 in header:
            raise RuntimeError("a header field of the response holds a control character")
        self._header = header + b"\r\n"

    def _send_body(self, body: bytes, *, more: bool) -> None:
        header, self._header = self._header, b""
        if self.scope["method"] == "HEAD":
            body, self._length_left = b"", 0
        elif self._chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        else:
            self._length_left -= len(body)
            if self._length_left < 0 or (self._length_left and not more):
                raise RuntimeError("the body of the response is not as long as its Content-Length")
        self._connection.transport.write(header + body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            self._connection.on_response_complete()


async def too_many(scope: Any, _receive: Any, send: Any) -> None:
    """Answers a request of an address that has its quota in progress."""
    given = next((v for name, v in scope["headers"] if name == b"x-request-id"), b"")
    await problem_reply(ADDRESS_FULL).send(send, request_id_of(given))
