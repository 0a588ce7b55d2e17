"""One request, as handlers see it: what matters of its headers, its body, its caller."""

import asyncio
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final, TypeVar, cast

from litestar.types import HTTPReceiveMessage, HTTPScope, Receive, Scope

from api import metrics
from api.admission.executor import Steps, finished
from api.admission.quotas import Quota
from api.context import AppContext
from api.http.codings import decoded
from api.http.negotiation import CODINGS, Media, coding_of, media_of, prefers_msgpack
from api.wire.decoding import LARGE_BYTES
from core.errors import NotAcceptedType, TooLarge, Unreadable
from core.models import Caller
from core.repositories.idempotency import Claim
from core.results import Result

T = TypeVar("T")

CONTEXT: Final = "k9.context"
"""Where the scope keeps the `RequestContext`."""
WHOLE_BODY: Final = "k9.whole_body"
"""Where the scope of K9's own server has a function that returns the body if all of it has come."""

_HEADERS: Final = {
    b"authorization": "authorization",
    b"content-length": "content_length",
    b"content-type": "content_type",
    b"content-encoding": "content_encoding",
    b"accept": "accept",
    b"origin": "origin",
    b"access-control-request-method": "asked_method",
    b"x-request-id": "request_id",
    b"transfer-encoding": "transfer_encoding",
    b"expect": "expect",
    b"if-match": "if_match",
    b"idempotency-key": "idempotency_key",
}
_LISTS: Final = frozenset({"accept", "content_encoding", "if_match"})
ANY: Final[tuple[Media, ...]] = ("json", "msgpack")
"""What a body that may carry vectors is written in."""
RECORD: Final[tuple[Media, ...]] = ("json",)
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_PROCESS: Final = token_hex(8).encode()
"""Begins the request ids of this process: random bytes for each request cost a system call."""
_NUMBERS: Final = itertools.count()
_DISCARD_BYTES_MAX: Final = 256 * 1024 * 1024
_DISCARD_S: Final = 3.0

GONE: Final = 499
"""The status of a request whose client left, as nginx counts it."""


class Disconnected(BaseException):
    """The client went away: nothing on the way out may take it for an error that it answers."""


@dataclass(slots=True, eq=False)
class RequestContext:
    """One request: the headers that matter, the caller, the body, and the quotas that it holds."""

    app: AppContext
    receive: Receive
    method: str
    path: str
    """As it is routed: see `api.http.paths`."""
    query: bytes
    whole_body: Callable[[], bytes | None]
    """Returns the body if all of it has come."""
    request_id: bytes = b""
    content_length: bytes | None = None
    content_type: bytes = b""
    content_encoding: bytes = b""
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
    quota: Quota | None = None
    """The quota that the request holds one unit of."""
    buffered: int = 0
    """Bytes of the body that count as buffered."""
    read: bool = False
    """Whether all of the body has come."""
    first_media_out: Media | None = None
    """Of a request that is answered again: what the first answer was in, whatever it accepts."""
    data: bytes = b""
    """The body, once the request has begun; empty where it has none."""
    claim: Claim | None = None
    """Of a write with an idempotency key that is being answered for the first time."""
    rate_headers: tuple[tuple[bytes, bytes], ...] = ()
    """What the answer says of the caller's rate; nothing where it has none."""
    stored: Result | None = None
    """Of one that was answered before."""

    @property
    def caller(self) -> Caller:
        """Who asks. Every route that is not open has one."""
        if self.known_caller is None:
            raise AssertionError("only open routes have no caller")
        return self.known_caller

    @property
    def msgpack_in(self) -> bool:
        """Whether the body is msgpack; else it is JSON."""
        return media_of(self.content_type) == "msgpack"

    @property
    def msgpack_out(self) -> bool:
        """Whether the answer should be msgpack."""
        if self.first_media_out is not None:
            return self.first_media_out == "msgpack"
        return prefers_msgpack(self.accept)

    async def begin(self, quota: Quota, body_bytes_max: int, media: Sequence[Media] = ANY) -> None:
        """Admits the request once its body is here: until then it holds nothing but the body.

        Args:
            quota: What the request takes one of until it is answered.
            body_bytes_max: Of its body, encoded or not.
            media: What its body may be written in.

        Raises:
            OverShare: the caller has too much in flight.
            Overloaded: all callers together have.
            TooLarge: the body is over the limit, as announced or as it comes.
            NotAcceptedType: its media type or content coding is not taken.
            Unreadable: it did not arrive in time, or not in its coding.
            Disconnected: the client went away.
        """
        if self.has_body:
            quota.check(self.caller.user_id)
            self._check_head(body_bytes_max, media)
            await self._read(body_bytes_max)
        self.enter(quota)

    async def begin_search(self, model_version: str) -> None:
        """Admits a search as `begin` does; its body may be as large as its vectors need."""
        snapshot = self.app.registry.current(model_version)
        limits = self.app.body_limits
        bytes_max = limits.search if snapshot is None else limits.search_of(snapshot.dimension)
        await self.begin(self.app.admission.reads, bytes_max)

    def enter(self, quota: Quota) -> None:
        """Admits a request whose body is of no interest; raises what `Quota.check` does."""
        quota.acquire(self.caller.user_id)
        self.quota = quota

    async def decode(self, steps: Steps[T]) -> T:
        """What the body is decoded to; a large one is decoded in a thread.

        Raises:
            Overloaded: the thread is not free in time.
        """
        if len(self.data) <= LARGE_BYTES:
            return finished(steps)
        return await self.app.decoding.run(self.caller.user_id, steps)

    def leave(self) -> None:
        """Releases the quota of the request."""
        if self.quota is not None:
            self.quota.release(self.caller.user_id)
            self.quota = None

    def close(self) -> None:
        """Releases all that the request holds."""
        self.leave()
        self.data = b""
        if self.buffered:
            self.app.admission.buffered.release(self.caller.user_id, self.buffered)
            self.buffered = 0

    @property
    def has_body(self) -> bool:
        """Whether a body comes, by the request's head."""
        return bool(self.transfer_encoding) or self.content_length not in {None, b"0"}

    def _check_head(self, body_bytes_max: int, media: Sequence[Media]) -> None:
        length = self.content_length
        if length is not None and length.isdigit() and int(length) > body_bytes_max:
            raise _too_large(body_bytes_max)
        if media_of(self.content_type) not in media:
            raise NotAcceptedType(f"send {' or '.join(media)}, and name it in Content-Type")
        if self.content_encoding and not coding_of(self.content_encoding)[1]:
            raise NotAcceptedType(f"a body may be coded with one of {CODINGS}", CODINGS)

    async def _read(self, body_bytes_max: int) -> None:
        caller = self.caller.user_id
        data = self.whole_body()
        if data is not None:
            self.read = True
            if len(data) > body_bytes_max:
                raise _too_large(body_bytes_max)
            self._buffer(len(data))
        else:
            arriving = self.app.admission.arriving
            arriving.acquire(caller)
            try:
                data = await self._arrived(body_bytes_max)
            finally:
                arriving.release(caller)
        if self.content_encoding:
            coding, _ = coding_of(self.content_encoding)
            if coding is not None:
                steps = decoded(data, coding, body_bytes_max)
                data = await self.app.decoding.run(caller, steps, self._buffer)
        self.data = data

    async def _arrived(self, body_bytes_max: int) -> bytes:
        """The body as it was sent. The time that it may take grows with the bytes that came."""
        http = self.app.settings.http
        began = asyncio.get_running_loop().time()
        latest = began + http.body_timeout_s
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout_at(min(began + http.body_grace_s, latest)) as deadline:
                while True:
                    message = cast("HTTPReceiveMessage", await self.receive())
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > body_bytes_max:
                        raise _too_large(body_bytes_max)
                    self._buffer(len(chunk))
                    if not message.get("more_body", False):
                        self.read = True
                        break
                    due = began + http.body_grace_s + size / http.body_rate_min
                    deadline.reschedule(min(due, latest))
        except TimeoutError:
            metrics.SHED.labels("bodies", "rate").inc()
            raise Unreadable(
                f"the body came at less than {http.body_rate_min} bytes a second, "
                f"or took more than {http.body_timeout_s:g} s"
            ) from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def discard(self) -> None:
        """Reads what is left of the body and forgets it, within limits.

        A connection that is closed on a client that still sends is reset, and the client never
        sees why. One that asked first (`Expect`) has sent nothing, and is not made to.
        """
        if self.read or self.expect or not self.has_body:
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

    def _buffer(self, size: int) -> None:
        """Counts further bytes as buffered. The only body in memory has room whatever its size."""
        if not size:
            return
        buffered = self.app.admission.buffered
        if buffered.in_use == self.buffered:
            buffered.force_acquire(self.caller.user_id, size)
        else:
            buffered.acquire(self.caller.user_id, size)
        self.buffered += size


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {bytes_max} bytes for this route")


def _unknown() -> None:
    """Of servers that do not tell whether all of a body has come."""


def context_of(scope: HTTPScope, receive: Receive, app: AppContext) -> RequestContext:
    """Reads the headers once."""
    # Taken out: the function has the scope, and only the garbage collector would end that cycle.
    whole_body = cast("dict[str, Any]", scope).pop(WHOLE_BODY, _unknown)
    context = RequestContext(
        app, receive, scope["method"], scope["path"], scope["query_string"], whole_body
    )
    for name, value in scope["headers"]:
        field = _HEADERS.get(name)
        if field is not None:
            if field in _LISTS and (before := getattr(context, field)):
                joined = before + b", " + value  # RFC 9110, 5.3: they are one list
                setattr(context, field, joined)
                rest = [pair for pair in scope["headers"] if pair[0] != name]
                scope["headers"] = [*rest, (name, joined)]
            else:
                setattr(context, field, value)
    context.request_id = request_id_of(context.request_id)
    return context


def context_in(scope: Scope) -> RequestContext:
    """What the entrypoint put into the scope."""
    context: RequestContext = scope[CONTEXT]  # type: ignore[typeddict-item] # the key is ours
    return context


def request_id_of(given: bytes) -> bytes:
    """The caller's own request id, where it is a good one; else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else b"%b%016x" % (_PROCESS, next(_NUMBERS))
