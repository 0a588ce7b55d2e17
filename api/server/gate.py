"""Which searches are refused before they are begun, while more come than can be answered.

A search takes the processor in three steps, between which other requests have a turn of the event
loop (decision record 0027). So how many were begun in the last three turns says how long each of
them takes, in searches, whatever one search costs. Where many come for a moment, they wait. Where
there were too many in every turn for a while, no more are begun than that, and the rest is refused
while it has cost next to nothing: it is neither authenticated nor decoded (decision record 0030).
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from api import metrics
from api.fast_path import SEARCH
from api.http.context import request_id_of
from api.http.cors import Cors
from api.http.problems import problem_reply
from core.errors import Overloaded
from core.settings import Http

Fields = list[tuple[bytes, bytes]]

IN_FLIGHT_MAX: Final = 18
"""Searches in flight on the event loop, once more have come for a while. One caller has half of it
if alone, n callers 1/(n + 1) each, as of a `Quota`."""
STANDING_S: Final = 0.1
"""How long there have to be as many in every turn; and how long in none, until it is over."""
_TOLD_MAX: Final = 1024
_STEPS: Final = 3
"""Turns of the loop that a search takes."""

_SEARCH: Final = re.compile(rb"/models/[^/?]+/search(?:\?.*)?")
_FULL: Final = problem_reply(Overloaded("too many searches are in flight; try again shortly"))


class Gate:
    """Counts the searches that begin, and refuses some."""

    def __init__(self, http: Http, caller_of: Callable[[bytes], str]) -> None:
        """Takes how callers are told.

        Args:
            http: For the origins whose pages may read a refusal.
            caller_of: Returns the caller of a value of `Authorization` that was verified before;
                an empty string of any other.
        """
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
        """Since when every turn was full; None where the last one was not."""
        self._full_last = 0.0
        self._standing = False
        self._told: dict[bytes, str] = {}
        """Callers by what they send, while some are refused."""
        self._dated: Fields | None = None
        self._head = b""
        """The reply's head but for the request id, with the date of `_dated`."""

    def refuses(self, method: bytes, url: bytes, fields: Fields) -> bool:
        """Whether a request whose head has come is refused; all but searches begin."""
        if method != b"POST" or _SEARCH.fullmatch(url) is None:
            return False
        if not self._ticking:
            self._ticking = True
            self._full_since = None  # there were none at all
            loop = asyncio.get_running_loop()
            self._standing = self._standing and loop.time() - self._full_last < STANDING_S
            loop.call_soon(self._end_turn)
        caller = ""
        if self._standing:
            caller = self._caller(dict(fields).get(b"authorization", b""))
            held = sum(turn.get(caller, 0) for turn in self._turns)
            if held >= IN_FLIGHT_MAX - self._in_flight:
                self._refused += 1
                return True
        turn = self._turns[-1]
        turn[caller] = turn.get(caller, 0) + 1
        self._in_flight += 1
        return False

    def _caller(self, authorization: bytes) -> str:
        """What `caller_of` says, which is not asked again while some are refused."""
        caller = self._told.get(authorization)
        if caller is None:
            caller = self._caller_of(authorization)
            if caller and len(self._told) < _TOLD_MAX:
                self._told[authorization] = caller
        return caller

    def reply(self, fields: Fields, default: Fields, *, close: bool) -> bytes:
        """What refuses a request.

        Args:
            fields: Of its header.
            default: The server's own; a new list each second.
            close: Whether the connection is closed after it.
        """
        if default is not self._dated:
            self._dated = default
            same = [pair for pair in _FULL.head(b"") if pair[0] != b"x-request-id"]
            lines = [b"%b: %b\r\n" % pair for pair in (*default, *same)]
            self._head = b"".join([STATUS_LINE[_FULL.status], *lines])
        given = dict(fields)
        more = [b"%b: %b\r\n" % pair for pair in self._cors.headers(given.get(b"origin", b""))]
        if close:
            more.append(b"connection: close\r\n")
        return b"%bx-request-id: %b\r\n%b\r\n%b" % (
            self._head,
            request_id_of(given.get(b"x-request-id", b"")),
            b"".join(more),
            _FULL.body,
        )

    def _end_turn(self) -> None:
        """The requests that came together are begun."""
        now = asyncio.get_running_loop().time()
        if self._in_flight >= IN_FLIGHT_MAX or self._refused:
            self._full_last = now
            if self._full_since is None:
                self._full_since = now
            self._standing = self._standing or now - self._full_since >= STANDING_S
        else:
            self._full_since = None
            self._standing = self._standing and now - self._full_last < STANDING_S
        if self._refused:
            self._answers.inc(self._refused)
            self._shed.inc(self._refused)
            self._refused = 0
        if not self._standing:
            self._told.clear()
        if len(self._turns) == _STEPS:
            self._in_flight -= sum(self._turns[0].values())
        self._turns.append({})
        self._ticking = self._in_flight > 0
        if self._ticking:
            asyncio.get_running_loop().call_soon(self._end_turn)
