"""Builds and imports as server-sent events, from any process, which reads the table meanwhile.

All listeners of one of them share the polling. A stream ends with it, with its caller's
token, or with the process. A client that connects again gets the present state first, so that it
misses nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from litestar.types import Receive, Scope, Send

from api.admission.quotas import Quota
from api.serving.background import cancelled
from api.wire.fields import Answer
from core import telemetry
from core.errors import NotFound, Unavailable
from core.models import Caller
from core.settings import Http

EVENT_STREAM: Final = "text/event-stream"

_log = telemetry.logger(__name__)


@dataclass(slots=True, eq=False)
class _Watched:
    """One build or import that somebody listens to."""

    row_id: str
    text: bytes
    """The event of its present state."""
    over: bool
    """Nothing further will come."""
    listeners: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced by a new one, when the state is another."""
    looking: "asyncio.Task[None] | None" = None

    def publish(self, text: bytes, *, over: bool) -> None:
        """Takes a new state."""
        self.text = text
        self.over = over
        self.changed.set()
        self.changed = asyncio.Event()


class Events:
    """The streams of this process that follow builds, or imports."""

    def __init__(
        self,
        name: str,
        read: Callable[[str], Awaitable[tuple[Answer, bool]]],
        *,
        http: Http,
        stopping: Callable[[], bool],
        quota: Quota,
    ) -> None:
        """Events of this name.

        `read` gives a row as callers see it and whether it has ended, by its id. It raises NotFound
        where there is none.
        """
        self._name = name
        self.keep_alive = f": the {name} goes on\n\n".encode()
        self._read = read
        self._http = http
        self._stopping = stopping
        self._quota = quota
        self._watched: dict[str, _Watched] = {}
        self._streams: dict[str, dict[EventStream, None]] = {}
        """By caller, the oldest first."""

    async def open(self, row_id: str, caller: Caller, *, head: bool = False) -> "EventStream":
        """A stream of a build's or import's events, to be run as an ASGI application.

        Where the caller is over its quota, its oldest stream ends for the new one.

        Args:
            row_id: Which one.
            caller: Who listens. The stream ends with the token, whatever it does.
            head: Whether only the answer's head is asked for.

        Raises:
            NotFound: there is none.
            Overloaded: as many streams are open as may be, and the caller has none.
        """
        text, over = await self._state(row_id)
        own = self._streams.get(caller.user_id)
        if own and not self._quota.has_room(caller.user_id):
            next(iter(own)).give_way()
        self._quota.acquire(caller.user_id)
        stream = EventStream(
            self,
            self._join(row_id, text, over=over),
            caller,
            head=head,
            keepalive_s=self._http.event_keepalive_s,
        )
        self._streams.setdefault(caller.user_id, {})[stream] = None
        return stream

    def forget(self, stream: "EventStream") -> None:
        """Releases the quota of a stream, once; the last one of a row ends its look-ups."""
        caller, watched = stream.caller.user_id, stream.watched
        own = self._streams.get(caller, {})
        if stream not in own:
            return
        del own[stream]
        self._quota.release(caller)
        if not own:
            del self._streams[caller]
        watched.listeners -= 1
        if not watched.listeners:
            del self._watched[watched.row_id]
            if watched.looking is not None:
                watched.looking.cancel()

    def _join(self, row_id: str, text: bytes, *, over: bool) -> _Watched:
        watched = self._watched.get(row_id)
        if watched is None:
            watched = _Watched(row_id, text, over)
            self._watched[row_id] = watched
        else:
            self._take(watched, text, over=over)
        if watched.looking is None or (watched.looking.done() and not watched.over):
            watched.looking = asyncio.create_task(self._look(watched))
        watched.listeners += 1
        return watched

    def _take(self, watched: _Watched, text: bytes, *, over: bool) -> None:
        """Tells the listeners of a state that was read, unless they know it, or know the end."""
        if not watched.over and (text != watched.text or over):
            watched.publish(text, over=over)

    async def _state(self, row_id: str) -> tuple[bytes, bool]:
        """The event of the present state, and whether it is the last."""
        answer, over = await self._read(row_id)
        data = msgspec.json.encode(answer)
        return b"event: " + self._name.encode() + b"\ndata: " + data + b"\n\n", over

    async def _look(self, watched: _Watched) -> None:
        broken = False
        while not watched.over:
            await asyncio.sleep(self._http.event_poll_s)
            if self._stopping():
                watched.publish(watched.text, over=True)
                return
            try:
                text, over = await self._state(watched.row_id)
                self._take(watched, text, over=over)
            except Unavailable:
                continue  # comments go on, and so will the events
            except NotFound:
                watched.publish(watched.text, over=True)
                return
            except Exception:  # noqa: BLE001 - others listen, and the next look may be better
                if not broken:
                    _log.exception(f"{self._name} cannot be looked at", row_id=watched.row_id)
                broken = True
            else:
                broken = False


class EventStream:
    """The answer: an ASGI application that is run once."""

    def __init__(
        self, events: Events, watched: _Watched, caller: Caller, *, head: bool, keepalive_s: float
    ) -> None:
        self._events = events
        self.watched = watched
        self.caller = caller
        self._head = head
        self._keepalive_s = keepalive_s
        self._given_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def give_way(self) -> None:
        """Ends it for a newer stream of the same caller, which takes its place at once."""
        self._events.forget(self)
        self._given_way.set_result(None)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Answers."""
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", EVENT_STREAM.encode()),
                        (b"x-accel-buffering", b"no"),  # or a proxy would buffer it
                    ],
                }
            )
            if self._head or await self._run(receive, send):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._events.forget(self)

    async def _run(self, receive: Receive, send: Send) -> bool:
        """Sends events until build, token or process end, or the stream is to give way.

        False where the client went away. One that takes nothing is ended by the server.
        """
        sending = asyncio.create_task(self._send_events(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait(
                {sending, gone, self._given_way},
                timeout=self.caller.expires_at - time.time(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if sending.done():
                sending.result()
            return not gone.done()
        finally:
            await cancelled(sending, gone)

    async def _send_events(self, send: Send) -> None:
        watched, sent = self.watched, b""
        while True:
            changed, over, text = watched.changed, watched.over, watched.text
            if text != sent:
                await send({"type": "http.response.body", "body": text, "more_body": True})
                sent = text
            if over:
                return
            try:
                async with asyncio.timeout(self._keepalive_s):
                    await changed.wait()
            except TimeoutError:
                await send(
                    {
                        "type": "http.response.body",
                        "body": self._events.keep_alive,
                        "more_body": True,
                    }
                )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
