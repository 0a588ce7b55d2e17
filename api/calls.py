"""One request, as handlers see it: what matters of its headers, its body, its caller."""

import asyncio
import re
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final, cast

import msgspec
from litestar import Request, Response
from litestar.types import HTTPReceiveMessage, HTTPScope, Receive

from api.context import Context
from api.problems import Reply
from core.errors import TooLarge, Unreadable
from core.models import Caller

CALL: Final = "k9.call"
"""Where the scope keeps the `Call`."""

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"

_HEADERS: Final = {
    b"authorization": "authorization",
    b"content-length": "content_length",
    b"content-type": "content_type",
    b"accept": "accept",
    b"origin": "origin",
    b"access-control-request-method": "asked_method",
    b"x-request-id": "request_id",
    b"transfer-encoding": "transfer_encoding",
    b"expect": "expect",
    b"if-match": "if_match",
    b"idempotency-key": "idempotency_key",
}
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_DISCARD_BYTES_MAX: Final = 256 * 1024 * 1024
_DISCARD_S: Final = 3.0
_encode_json: Final = msgspec.json.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder().encode


class Disconnected(Exception):
    """The client went away: there is nobody to answer."""


@dataclass(slots=True, eq=False)
class Call:
    """One request. The front makes it; both lanes use it."""

    context: Context
    receive: Receive
    method: str
    path: str
    """As it is routed; the front says what that is."""
    query: bytes
    request_id: bytes = b""
    content_length: bytes | None = None
    content_type: bytes = b""
    accept: bytes = b""
    authorization: bytes | None = None
    origin: bytes = b""
    asked_method: bytes | None = None
    """Of a browser that asks before it sends a request to another origin."""
    transfer_encoding: bytes = b""
    expect: bytes = b""
    if_match: bytes | None = None
    idempotency_key: bytes | None = None
    known_caller: Caller | None = None
    reserved: int = 0
    """Bytes of the body that count as buffered; the front gives them back."""
    read: bool = False
    """Whether all of the body has come."""
    counted: bool = False
    """Whether admission counts the request as in flight."""
    data: bytes = b""
    """The body, once it is read."""

    @property
    def caller(self) -> Caller:
        """Who asks. Every route that is not open has one."""
        if self.known_caller is None:
            raise AssertionError("the front lets nobody in unknown")
        return self.known_caller

    @property
    def msgpack_in(self) -> bool:
        """Whether the body is msgpack; all else is taken for JSON: curl labels bodies a form."""
        return b"msgpack" in self.content_type.lower()

    @property
    def msgpack_out(self) -> bool:
        """Whether the answer should be msgpack."""
        return b"application/msgpack" in self.accept.lower()

    def reply(
        self, answer: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Reply:
        """The answer, encoded as the caller accepts it."""
        if self.msgpack_out:
            return Reply(status, _encode_msgpack(answer), MSGPACK, headers)
        return Reply(status, _encode_json(answer), JSON, headers)

    def reply_json(
        self, answer: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Reply:
        """The answer in JSON, whatever the caller accepts: it holds no vector."""
        return Reply(status, _encode_json(answer), JSON, headers)

    def leave(self) -> None:
        """Counts it as in flight no longer."""
        if self.counted:
            self.context.admission.leave()
            self.counted = False

    async def body(self) -> bytes:
        """The whole body, however often it is asked for.

        Its bytes count as buffered until the request is answered.

        Raises:
            TooLarge: it is over the limit, by its label or as it comes.
            Overloaded: too many bytes of bodies are in memory.
            Unreadable: it did not arrive in time.
            Disconnected: the client went away.
        """
        if self.read:
            return self.data
        if self.content_length is not None and self.content_length.isdigit():
            self._reserve(int(self.content_length))
        timeout_s = self.context.settings.http.body_timeout_s
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = cast("HTTPReceiveMessage", await self.receive())
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    self._reserve(size)
                    if not message.get("more_body", False):
                        self.read = True
                        break
        except TimeoutError:
            raise Unreadable(f"the body did not arrive within {timeout_s:g} s") from None
        self.data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return self.data

    async def discard(self) -> None:
        """Reads what is left of the body and forgets it, within limits.

        A connection that is closed on a client that still sends is reset, and the client never
        sees why. One that asked first (`Expect`) has sent nothing, and is not made to.
        """
        comes = self.transfer_encoding or self.content_length not in {None, b"0"}
        if self.read or self.expect or not comes:
            return
        left = _DISCARD_BYTES_MAX
        try:
            async with asyncio.timeout(_DISCARD_S):
                while left > 0:
                    message = cast("HTTPReceiveMessage", await self.receive())
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
                    left -= len(message.get("body", b""))
        except TimeoutError:
            pass

    def _reserve(self, size: int) -> None:
        """Makes the request's share of the buffered bytes at least `size`."""
        if size > self.reserved:
            limit = self.context.settings.http.body_bytes_max
            if size > limit:
                raise TooLarge(f"the body is over the limit of {limit} bytes")
            self.context.admission.reserve(size - self.reserved)
            self.reserved = size


def call_of(scope: HTTPScope, receive: Receive, context: Context) -> Call:
    """Reads the headers once."""
    call = Call(context, receive, scope["method"], scope["path"], scope["query_string"])
    for name, value in scope["headers"]:
        field = _HEADERS.get(name)
        if field is not None:
            setattr(call, field, value)
    if not _REQUEST_ID.fullmatch(call.request_id):
        call.request_id = token_hex(16).encode()
    return call


def call_in(request: Request[Any, Any, Any]) -> Call:
    """The call that the front put in the scope of a Litestar request."""
    call: Call = request.scope[CALL]  # type: ignore[typeddict-item] # the key is ours
    return call


def response(reply: Reply) -> Response[Any]:
    """A reply as Litestar sends it."""
    return Response(
        reply.body,
        status_code=reply.status,
        media_type=reply.content_type,
        headers={name.decode(): value.decode() for name, value in reply.headers},
    )
