"""The outermost layer, plain ASGI: what every request passes, whichever lane answers it.

Request id, path, admission, token, metrics, and the last resort for errors. Searches and neighbours
are answered right here: passing a request through a router, a signature model and a response class
costs as much as the search itself. The same functions are Litestar handlers too, for the reference
and for a test that both answer alike.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, cast

from litestar import Litestar
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from api import metrics
from api.context import Context
from api.http.context import CALL, GONE, Call, Disconnected, call_of
from api.http.cors import Cors
from api.http.paths import routed_path, unescape
from api.http.problems import Reply, problem_reply, unexpected
from api.routes import search
from core import telemetry
from core.errors import Overloaded, Unavailable
from core.settings import Settings

_ALWAYS: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_ERRORS_FROM: Final = 400
_FAST_PARTS: Final = 6
"""`/models/{model_version}/products/{product_id}/neighbors`, split at its slashes."""

_log = telemetry.logger(__name__)


class Front:
    """The ASGI application."""

    def __init__(
        self,
        app: Litestar,
        settings: Settings,
        context: Callable[[], Context | None],
        *,
        fast_lane: bool = True,
    ) -> None:
        self.litestar = app
        self._app = cast("ASGIApp", app)
        self._context = context
        self._cors = Cors(settings.http)
        self._meter = metrics.Meter()
        self._fast_lane = fast_lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or runs the lifespan."""
        kind: str = scope["type"]
        if kind == "http":
            await self._http(cast("HTTPScope", scope), receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        context = self._context()
        if context is None:
            raise RuntimeError("the server sent a request before the start was complete")
        call = call_of(scope, receive, context)
        exchange = _Exchange(send, call, self._cors)
        try:
            await self._answer(scope, call, exchange)
        except Disconnected:
            exchange.status = GONE
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it is a 500
            await self._failed(error, call, exchange)
        finally:
            call.close()
            self._meter.record(
                call.method, exchange.route, exchange.status, perf_counter() - started
            )

    async def _answer(self, scope: HTTPScope, call: Call, exchange: "_Exchange") -> None:
        path = routed_path(scope.get("raw_path") or scope["path"].encode())
        scope["path"] = call.path = path
        if call.asked_method and (allowed := self._cors.preflight(call)):
            await exchange.send_reply(allowed)
            return
        if self._fast_lane and (reply := await _fast(path, call, exchange)):
            await exchange.send_reply(reply)
            return
        if call.method == "HEAD":
            scope = {**scope, "method": "GET"}  # the server's own says that there is no body
        untyped = cast("dict[str, Any]", scope)
        untyped[CALL] = call
        try:
            await self._app(scope, call.receive, exchange.send)
        finally:
            exchange.route = untyped.get("path_template") or metrics.UNMATCHED

    async def _failed(self, error: Exception, call: Call, exchange: "_Exchange") -> None:
        note_failure(error, call)
        if exchange.started:
            raise error  # half an answer is out: the server ends the connection
        await exchange.send_reply(problem_reply(error))


def note_failure(error: BaseException, call: Call) -> None:
    """Logs what nobody expected."""
    if unexpected(error):
        _log.error(
            "request failed",
            request_id=call.request_id.decode(),
            method=call.method,
            exc_info=error,
        )
    elif isinstance(error, Unavailable) and not isinstance(error, Overloaded):
        _log.warning(
            "request not served",
            request_id=call.request_id.decode(),
            error=type(error).__name__,
            detail=str(error),
        )


async def _fast(path: str, call: Call, exchange: "_Exchange") -> Reply | None:
    """The answer of the fast lane; None for a request that is not for it."""
    if not path.startswith("/models/"):
        return None
    parts = path.split("/")
    if call.method == "POST":
        if len(parts) == 4 and parts[3] == "search" and parts[2]:  # noqa: PLR2004
            exchange.route = search.SEARCH_ROUTE
            call.known_caller = call.context.authenticator.caller(call.authorization)
            return await search.search(call, unescape(parts[2]))
    elif call.method == "GET" and len(parts) == _FAST_PARTS:
        _, _, model_version, products, product_id, neighbors = parts
        if products == "products" and neighbors == "neighbors" and model_version and product_id:
            exchange.route = search.NEIGHBORS_ROUTE
            call.known_caller = call.context.authenticator.caller(call.authorization)
            return await search.neighbors(call, unescape(model_version), unescape(product_id))
    return None


class _Exchange:
    """Sends the answer, with the headers that all of them have, and notes how it went."""

    __slots__ = ("_call", "_cors", "_head", "_request_id", "_send", "route", "started", "status")

    def __init__(self, send: Send, call: Call, cors: Cors) -> None:
        self._send = send
        self._call = call
        self._request_id = call.request_id
        self._head = call.method == "HEAD"
        self._cors = cors.headers(call.origin)
        self.route = metrics.UNMATCHED
        self.status = 500
        self.started = False

    async def send_reply(self, reply: Reply) -> None:
        """Sends a whole reply."""
        if reply.status >= _ERRORS_FROM:
            await self._give_up_body()
        self.started = True
        self.status = reply.status
        headers = [
            (b"content-type", reply.content_type.encode()),
            (b"content-length", str(len(reply.body)).encode()),
            (b"x-request-id", self._request_id),
            *_ALWAYS,
            *reply.headers,
            *self._cors,
        ]
        await self._send(
            {"type": "http.response.start", "status": reply.status, "headers": headers}
        )
        body = b"" if self._head else reply.body
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def send(self, message: Message) -> None:
        """Passes on what Litestar sends."""
        if message["type"] == "http.response.start":
            if message["status"] >= _ERRORS_FROM:
                await self._give_up_body()
            self.started = True
            self.status = message["status"]
            own = list(message["headers"])
            said = {name for name, _ in own}
            message["headers"] = [
                *own,
                (b"x-request-id", self._request_id),
                *(pair for pair in _ALWAYS if pair[0] not in said),
                *self._cors,
            ]
        elif message["type"] == "http.response.body" and self._head:
            message["body"] = b""
        await self._send(message)

    async def _give_up_body(self) -> None:
        """Before an error: the rest of the body is nobody's, and the request is done here."""
        self._call.leave()
        await self._call.discard()
