"""Which searches are refused before they are begun, while more come than can be answered.

A plain search takes the processor in three steps, between which other requests have a turn of the
event loop (decision record 0027). So how many were begun in the last three turns says how long each
of them takes, in searches, whatever one search costs. Where many come for a moment, they wait.
Where there was a crowd of them in every turn for a while, only a few are taken on at once until it
is over, and the rest is refused while it has cost next to nothing: it is neither parsed, where its
head is plain, nor authenticated, nor decoded (decision record 0031).
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from api import metrics
from api.fast_path import SEARCH
from api.http.context import request_id_of
from api.http.cors import Cors
from api.http.problems import problem_reply
from api.server.heads import Head
from core.errors import Overloaded
from core.settings import Http

CROWD: Final = 64
"""Searches in flight on the event loop; more of them for `STANDING_S`, and some are refused."""
IN_FLIGHT_MAX: Final = 18
"""How many are in flight while some are refused. One caller has half of it if alone, n callers
1/(n + 1) each, as of a `Quota`."""
STANDING_S: Final = 0.1
"""How long there have to be more than the crowd in every turn; and how long none has to be refused
until it is over."""
_CALLERS_MAX: Final = 1024
"""Values of `Authorization` whose caller is remembered."""
_STEPS: Final = 3
"""Turns of the loop that a plain search takes."""

_PATH: Final = re.compile("/+models/.+/search/*", re.DOTALL)
"""Whatever the router takes for the path of a search, once it has no escapes; and what it does not
know."""
_FULL: Final = problem_reply(Overloaded("too many searches are in flight; try again shortly"))

Fields = list[tuple[bytes, bytes]]


class Gate:
    """Counts the searches that begin, and refuses some."""

    def __init__(self, http: Http, caller_of: Callable[[bytes], str]) -> None:
        """Lets every search begin, until too many have.

        Args:
            http: For the origins whose pages may read a refusal.
            caller_of: Returns the caller of a value of `Authorization` that was verified before;
                an empty string of any other.
        """
        self.standing = False
        """Whether some searches are refused: more came than can be answered, for a while."""
        self._caller_of = caller_of
        self._cors = Cors(http)
        self._answers = metrics.REQUESTS.labels("POST", SEARCH, str(_FULL.status))
        self._shed = metrics.SHED.labels("searches", "full")
        self._ticking = False
        self._turns = deque([dict[str, int]()], maxlen=_STEPS)
        """Searches that began in this turn of the loop, last, and in those before, by caller."""
        self._in_flight = 0
        """All of them."""
        self._refused = 0
        """Those that were refused in this turn."""
        self._full_since: float | None = None
        """Since when every turn had too many; None where the last one had not."""
        self._full_last = 0.0
        self._callers: dict[bytes, str] = {}
        """Callers by their value of `Authorization`, while some searches are refused."""
        self._dated: Fields | None = None
        self._head = b""
        """The reply's head but for the request id, with the date of `_dated`."""

    def admit(self, scope: Any, app: Any) -> Any:
        """What answers a request that begins now: the application, or a refusal in its place."""
        if scope["method"] != "POST" or _PATH.fullmatch(scope["path"]) is None:
            return app
        if not self._ticking:
            self._ticking = True
            self._full_since = None  # there were none at all
            loop = asyncio.get_running_loop()
            self.standing = self.standing and loop.time() - self._full_last < STANDING_S
            loop.call_soon(self._end_turn)
        caller = ""
        if self.standing:
            authorization = dict(scope["headers"]).get(b"authorization", b"")
            if self.refuses(authorization):
                return self._answer
            caller = self._caller(authorization)
        turn = self._turns[-1]
        turn[caller] = turn.get(caller, 0) + 1
        self._in_flight += 1
        return app

    def refuses(self, authorization: bytes) -> bool:
        """Whether a search that a caller sends now is refused, and is counted as that."""
        if not self.standing or not self._ticking:
            return False
        room = IN_FLIGHT_MAX - self._in_flight
        if room > 0:
            caller = self._caller(authorization)
            if sum(turn.get(caller, 0) for turn in self._turns) < room:
                return False
        self._refused += 1
        return True

    def _caller(self, authorization: bytes) -> str:
        """What `caller_of` says, which is not asked again while some are refused."""
        caller = self._callers.get(authorization)
        if caller is None:
            caller = self._caller_of(authorization)
            if caller and len(self._callers) < _CALLERS_MAX:
                self._callers[authorization] = caller
        return caller

    async def _answer(self, scope: Any, _receive: Any, send: Any) -> None:
        """Refuses a request in place of the application."""
        given = dict(scope["headers"])
        cors = self._cors.headers(given.get(b"origin", b""))
        reply = msgspec.structs.replace(_FULL, headers=(*_FULL.headers, *cors))
        await reply.send(send, request_id_of(given.get(b"x-request-id", b"")))

    def reply(self, head: Head, default: Fields) -> bytes:
        """What refuses a request that was not parsed.

        Args:
            head: Its head.
            default: The server's own header fields; a new list each second.
        """
        if default is not self._dated:
            self._dated = default
            same = [pair for pair in _FULL.head(b"") if pair[0] != b"x-request-id"]
            lines = [b"%b: %b\r\n" % pair for pair in (*default, *same)]
            self._head = b"".join([STATUS_LINE[_FULL.status], *lines])
        cors = self._cors.headers(head.value(b"origin"))
        return b"%bx-request-id: %b\r\n%b\r\n%b" % (
            self._head,
            request_id_of(head.value(b"x-request-id")),
            b"".join([b"%b: %b\r\n" % pair for pair in cors]),
            _FULL.body,
        )

    def _end_turn(self) -> None:
        """The requests that came together are begun."""
        now = asyncio.get_running_loop().time()
        begins = False
        if self._in_flight > CROWD or self._refused:
            self._full_last = now
            if self._full_since is None:
                self._full_since = now
            begins = not self.standing and now - self._full_since >= STANDING_S
        else:
            self._full_since = None
            self.standing = self.standing and now - self._full_last < STANDING_S
        if self._refused:
            self._answers.inc(self._refused)
            self._shed.inc(self._refused)
            self._refused = 0
        if not self.standing:
            self._callers.clear()
        if begins:  # count anew: the crowd in flight is of unknown callers, and keeps nobody out
            self.standing = True
            self._turns.clear()
            self._in_flight = 0
        if len(self._turns) == _STEPS:
            self._in_flight -= sum(self._turns[0].values())
        self._turns.append({})
        self._ticking = self._in_flight > 0 or begins
        if self._ticking:
            asyncio.get_running_loop().call_soon(self._end_turn)
