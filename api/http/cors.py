"""CORS: off unless origins are set. An origin that is not listed gets no header at all."""

from typing import Final

from api.http.context import RequestContext
from api.http.problems import Headers, Reply
from core.settings import Http

_METHODS: Final = b"GET, POST, PUT, PATCH, DELETE"
_HEADERS: Final = b"Authorization, Content-Type, Idempotency-Key, If-Match, X-Request-Id"
_EXPOSED: Final = (
    b"ETag, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id, X-Watermark"
)
_MAX_AGE_S: Final = b"600"


class Cors:
    """Which pages may read answers."""

    def __init__(self, http: Http) -> None:
        self._origins = frozenset(origin.encode() for origin in http.cors_origins)

    def headers(self, origin: bytes) -> Headers:
        """What an answer carries for a page of this origin."""
        if not self._origins:
            return ()
        if origin not in self._origins:
            return ((b"vary", b"Origin"),)
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        )

    def preflight(self, context: RequestContext) -> Reply | None:
        """The answer to a browser that asks first; None where there is no CORS for it."""
        if context.method != "OPTIONS" or context.origin not in self._origins:
            return None
        allowed = (
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _HEADERS),
            (b"access-control-max-age", _MAX_AGE_S),
        )
        return Reply(204, b"", "text/plain", allowed)
