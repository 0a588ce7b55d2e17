"""HTTP/1.1 on one connection: uvicorn's protocol on httptools, with limits on all that may last.

What the parser refuses is answered with a problem detail. A header has a size and a time, a reply a
time in which it must be read, and requests that are sent ahead wait until earlier replies are read.
"""

import asyncio
from typing import Any, Final
from urllib.parse import unquote

import httptools
from litestar.exceptions import HTTPException
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api import metrics
from api.http.context import request_id_of
from api.http.problems import Reply, problem_reply
from api.server.connections import Cause, ConnectionTable, Group
from api.server.cycle import ADDRESS_FULL, TOO_MANY, Cycle, too_many
from api.server.gate import Gate
from api.server.heads import plain_head
from core.errors import Overloaded, Unreadable

HEADER_BYTES_MAX: Final = 32 * 1024
_FEED_BYTES: Final = 16 * 1024
"""What is parsed at a time outside of a body, so that no header is far over its limit."""
HEADERS_MAX: Final = 128
_FRAMING_BYTES_MAX: Final = 64 * 1024
_FRAMING_PER_BYTE_MAX: Final = 16
"""Chunk sizes, their extensions and trailers may take as much for each byte of a body."""
_NOTED: Final = (b"host", b"transfer-encoding", b"x-forwarded-for", b"expect")
_AHEAD_MAX: Final = 64
"""Requests that may be sent before earlier ones are answered."""
_TOO_LARGE: Final = 431
_FULL: Final = Overloaded("too many connections are open; try again shortly")


class _Refused(Exception):
    """A header that the parser takes and K9 does not."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    group: Group
    cycle: Any
    """The `Cycle` whose header came last; None before the first."""

    def __init__(self, table: ConnectionTable, gate: Gate | None, **given: Any) -> None:
        super().__init__(**given)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)
        self._table = table
        self._gate = gate
        self._counted = False
        self._proxied = False
        self._active: Cycle | None = None
        self._in_header = False
        self._noted: dict[bytes, list[bytes]] = {}
        """Values of the fields that are of interest here, by name."""
        self._header_bytes = 0
        self._framing_bytes = 0
        self._body_bytes = 0
        self._to_drop = 0
        """Bytes that are still to come of the body of a request that was refused unparsed."""
        self._deaf = False
        """What comes now is dropped: it cannot be parsed, or is not for a request."""
        self._last: Reply | None = None
        """Sent when what is in progress is answered."""
        self._status = 400

    # --- opening and closing ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection, or refuses it."""
        super().connection_made(transport)
        peer = self.client[0] if self.client else ""
        self._proxied = self._table.trusts(peer)
        cause = self._table.admit(self, peer)
        if cause is None:
            self._counted = True
            return
        self._deaf = True
        self.connections.discard(self)
        metrics.CONNECTIONS_ENDED.labels(cause).inc()
        self._write(problem_reply(ADDRESS_FULL if cause == "address" else _FULL))
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wakes what waits for the client."""
        self._leave()
        self.pipeline.clear()
        active = self._active
        super().connection_lost(exc)
        if active is not None and not active.response_complete:
            active.disconnected = True
            active.message_event.set()

    def end(self, cause: Cause) -> None:
        """Ends the connection at once."""
        metrics.CONNECTIONS_ENDED.labels(cause).inc()
        self._leave()
        self.transport.abort()

    @property
    def unread_bytes(self) -> int:
        """Bytes of replies that wait to be taken."""
        return self.transport.get_write_buffer_size()

    def _leave(self) -> None:
        if self._counted:
            self._counted = False
            self._table.leave(self)

    def shutdown(self) -> None:
        """Closes the connection once what has been begun on it is answered."""
        newest = self.cycle
        if newest is not None and not newest.response_complete:
            newest.keep_alive = False
        elif not self._in_header:
            self._close()

    def _close(self) -> None:
        """Closes this side, and reads on until the client has closed its own.

        A socket that is closed with something unread resets the connection, and the client may
        never see the reply.
        """
        self._deaf = True
        if not self.unread_bytes:
            self.connections.discard(self)  # a stop of the server need not wait for it
        if self._counted:
            self._table.close(self)
        newest = self.cycle
        unread = self._to_drop or (newest is not None and newest.more_body)
        if unread and self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client has not taken what it was sent."""
        super().pause_writing()
        if self._counted:
            self._table.stalls(self)

    def resume_writing(self) -> None:
        """It has: the next request may begin."""
        super().resume_writing()
        if self._counted:
            self._table.reads(self)
        if self.pipeline and (self._active is None or self._active.response_complete):
            self._start_next()

    # --- what comes -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parses what has come, but for searches that are refused without it."""
        if self._to_drop:
            dropped = min(self._to_drop, len(data))
            self._to_drop -= dropped
            data = data[dropped:]
        if self._gate is not None and self._gate.standing:
            data = self._turn_away(self._gate, data)
        if not data:
            return
        newest = self.cycle
        if len(data) <= _FEED_BYTES or (newest is not None and newest.more_body):
            self._feed(data)
            return
        for start in range(0, len(data), _FEED_BYTES):
            self._feed(data[start : start + _FEED_BYTES])

    def _turn_away(self, gate: Gate, data: bytes) -> bytes:
        """Refuses the plain searches that the data begins with; what is left is for the parser."""
        newest = self.cycle
        if newest is not None and (newest.more_body or not newest.response_complete):
            return data
        if self._in_header or self._deaf or self._table.draining:
            return data
        while data and not self.flow.write_paused:
            head = plain_head(data)
            if head is None or not gate.refuses(head.value(b"authorization")):
                break
            self.transport.write(gate.reply(head, self.server_state.default_headers))
            self._to_drop = max(0, head.total - len(data))
            data = data[head.total :]
            if self._counted:
                self._table.begin(self)
                self._table.rest(self)
        return data

    def _feed(self, data: bytes) -> None:
        if self._deaf:
            return
        in_header, before = self._in_header, self.cycle
        in_body = not in_header and before is not None and before.more_body
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # what follows would be in another protocol
            self._deaf = True
        except httptools.HttpParserError:
            self._refuse()
            return
        if in_body and self.cycle.more_body:
            self._framing_bytes += len(data)
            overhead = self._framing_bytes - self._body_bytes
            if overhead > _FRAMING_BYTES_MAX + _FRAMING_PER_BYTE_MAX * self._body_bytes:
                self._refuse()
        elif self._in_header:
            if in_header:
                self._header_bytes += len(data)
            self._table.reads_header(self)
            if self._header_bytes > HEADER_BYTES_MAX:
                self._status = _TOO_LARGE
                self._refuse()

    def _refuse(self) -> None:
        """Answers what cannot be parsed, after what came before it."""
        self._deaf = True
        metrics.CONNECTIONS_MALFORMED.inc()
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not self._in_header:
            cycle.keep_alive = False
            if cycle.response_complete:
                self._close()
            else:
                cycle.broken = True
                cycle.message_event.set()
            return
        error: Exception = Unreadable("this is not a request of HTTP/1.1")
        if self._status != 400:  # noqa: PLR2004 - the usual case
            error = HTTPException(status_code=self._status)
        self._last = problem_reply(error)
        if cycle is None or (cycle.response_complete and not self.pipeline):
            self._finish()

    def _finish(self) -> None:
        """Sends what is left to be said, and closes."""
        if self._last is not None:
            self._write(self._last)
            self._last = None
        self._close()

    def _write(self, reply: Reply) -> None:
        """Writes a reply that no request of the application has."""
        given = next((v for name, v in self.headers or () if name == b"x-request-id"), b"")
        headers = [*self.server_state.default_headers, *reply.head(request_id_of(given))]
        lines = [b"%b: %b\r\n" % pair for pair in (*headers, (b"connection", b"close"))]
        self.transport.write(b"".join([STATUS_LINE[reply.status], *lines, b"\r\n", reply.body]))

    # --- what the parser finds --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request line begins."""
        super().on_message_begin()
        self._in_header = True
        self._header_bytes = 0
        self._noted = {name: [] for name in _NOTED}

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the header; those of a trailer are dropped, as HTTP allows."""
        if not self._in_header:
            return
        if len(self.headers) >= HEADERS_MAX:
            self._status = _TOO_LARGE
            raise _Refused("too many fields")
        name = name.lower()
        noted = self._noted.get(name)
        if noted is not None:
            noted.append(value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """A whole header has come: its request begins, unless earlier ones are not answered."""
        version = self.parser.get_http_version()
        self._check_header(version)
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        if self._proxied and self.client is not None:
            scope["client"] = (
                self._table.client_of(self.client[0], self._noted[b"x-forwarded-for"]),
                0,
            )
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        previous = self.cycle
        keep_alive = keep_alive and not self._table.draining
        expects_continue = any(v.lower() == b"100-continue" for v in self._noted[b"expect"])
        self.cycle = cycle = Cycle(self, scope, keep_alive, expects_continue)
        self._in_header = False
        self._framing_bytes = self._body_bytes = 0
        self._table.begin(self)
        if previous is None or (previous.response_complete and not self.flow.write_paused):
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _check_header(self, version: str) -> None:
        """Checks what the parser does not, and ends it with `_Refused`."""
        if version not in {"1.1", "1.0"}:
            raise _Refused("another version")
        hosts, codings = self._noted[b"host"], self._noted[b"transfer-encoding"]
        if len(hosts) > 1 or (version == "1.1" and not hosts):
            raise _Refused("RFC 9112: one Host")
        if codings and (version == "1.0" or len(codings) > 1 or codings[0].lower() != b"chunked"):
            raise _Refused("no transfer coding but chunked, and none in HTTP/1.0")
        if len(self.pipeline) >= _AHEAD_MAX:
            self._status = TOO_MANY
            raise _Refused("too many requests sent ahead")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        cycle = self.cycle
        self._body_bytes += len(body)
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The end of a request."""
        self.cycle.more_body = False
        if not self.cycle.response_complete:
            self.cycle.message_event.set()

    # --- requests in turn -------------------------------------------------------------------------

    def _start(self, cycle: Cycle) -> None:
        self._active = cycle
        app = self.app if self._gate is None else self._gate.admit(cycle.scope, self.app)
        client = cycle.scope["client"]
        if self._proxied and client is not None:
            running = self._answer_counted(cycle, client[0], app)
        else:
            running = cycle.run_asgi(app)
        task = self.loop.create_task(running)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _answer_counted(self, cycle: Cycle, client: str, app: Any) -> None:
        if not self._table.begin_request(client):
            await cycle.run_asgi(too_many)
            return
        try:
            await cycle.run_asgi(app)
        finally:
            self._table.end_request(client)

    def _start_next(self) -> None:
        cycle: Any = self.pipeline.pop()[0]
        self._start(cycle)

    def on_response_complete(self) -> None:
        """A reply has been written: the next request, the end, or a rest."""
        active = self._active
        if self.transport.is_closing() or active is None:
            return
        if not active.keep_alive or active.more_body:
            self.pipeline.clear()
            self._close()
            return
        self.flow.resume_reading()
        if self.pipeline:
            if not self.flow.write_paused:
                self._start_next()
        elif self._last is not None:
            self._finish()
        elif self._counted:
            self._table.rest(self)
            if self._in_header:
                self._table.reads_header(self)
