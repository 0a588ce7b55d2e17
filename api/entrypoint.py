"""The outermost ASGI layer: request id, path, CORS, metrics, and the last resort for errors.

Litestar runs its middleware behind the router, where a 404 does not pass; this stands before it.
"""

from time import perf_counter
from typing import Any, Final, cast

from litestar import Litestar
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from api import fast_path, metrics
from api.context import AppContext
from api.health import Health
from api.http.context import CONTEXT, GONE, Disconnected, RequestContext, context_of
from api.http.cors import Cors
from api.http.idempotency import settle_key
from api.http.paths import routed_path
from api.http.problems import ALWAYS, Reply, log_failure, problem_reply
from api.spans import end_span, request_span
from core import telemetry, tracing
from core.settings import Settings

_ERRORS_FROM: Final = 400


class Entrypoint:
    """The ASGI application."""

    def __init__(self, app: Litestar, settings: Settings, *, use_fast_path: bool = True) -> None:
        self.litestar = app
        self.health = Health()
        self.context: AppContext | None = None
        """Of a process that has started."""
        self.failure: BaseException | None = None
        """Why the start failed."""
        self.loading_s = 0.0
        """How long a start waits for the indexes, for a process that others answer in place of."""
        self._app = cast("ASGIApp", app)
        self._cors = Cors(settings.http)
        self._meter = metrics.Meter()
        self._use_fast_path = use_fast_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or runs the lifespan."""
        kind: str = scope["type"]
        if kind == "http":
            await self._http(cast("HTTPScope", scope), receive, send)
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        else:
            await self._app(scope, receive, send)

    def drain(self) -> None:
        """Fails readiness from now on, so that no new requests are sent here."""
        self.health.draining = True

    def caller_of(self, authorization: bytes) -> str:
        """Whose value of `Authorization` this is, if it was verified before; else empty."""
        if self.context is None:
            return ""
        caller = self.context.authenticator.remembered(authorization)
        return "" if caller is None else caller.user_id

    async def _http(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        app = self.context
        if app is None:
            raise RuntimeError("the server sent a request before the start was complete")
        context = context_of(scope, receive, app)
        telemetry.REQUEST_ID.set(context.request_id)
        sender = ResponseSender(send, context, self._cors)
        span = request_span(scope, context.request_id) if tracing.enabled() else None
        try:
            await self._answer(scope, context, sender)
        except Disconnected:
            sender.status = GONE
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, it is a 500
            await self._failed(error, context, sender)
        finally:
            if context.claim is not None:  # the client left, or the process is stopped
                await settle_key(context, Disconnected())
            context.close()
            self._meter.record(
                context.method, sender.route, sender.status, perf_counter() - started
            )
            if span is not None:
                end_span(span, context.method, sender.route, sender.status)

    async def _answer(
        self, scope: HTTPScope, context: RequestContext, sender: "ResponseSender"
    ) -> None:
        path = routed_path(scope.get("raw_path") or scope["path"].encode())
        scope["path"] = context.path = path
        if context.asked_method and (allowed := self._cors.preflight(context)):
            await sender.send_reply(allowed)
            return
        if self._use_fast_path and (matched := fast_path.match(context.method, path)):
            sender.route, handler, parts = matched
            await sender.send_reply(await handler(context, parts))
            return
        if context.method == "HEAD":
            scope = {**scope, "method": "GET"}  # the server's own says that there is no body
        untyped = cast("dict[str, Any]", scope)
        untyped[CONTEXT] = context
        try:
            await self._app(scope, context.receive, sender.send)
        finally:
            sender.route = untyped.get("path_template") or metrics.UNMATCHED
            del untyped[CONTEXT]  # it has the server's request, and that the scope: a cycle

    async def _failed(
        self, error: Exception, context: RequestContext, sender: "ResponseSender"
    ) -> None:
        log_failure(error, context.request_id, context.method)
        if sender.started:
            raise error  # half an answer is out: the server ends the connection
        await sender.send_reply(problem_reply(error))


class ResponseSender:
    """Sends the answer, with the headers that all of them have, and notes how it went."""

    __slots__ = ("_context", "_cors", "_head", "_request_id", "_send", "route", "started", "status")

    def __init__(self, send: Send, context: RequestContext, cors: Cors) -> None:
        self._send = send
        self._context = context
        self._request_id = context.request_id
        self._head = context.method == "HEAD"
        self._cors = cors.headers(context.origin)
        self.route = metrics.UNMATCHED
        self.status = 500
        self.started = False

    async def send_reply(self, reply: Reply) -> None:
        """Sends a whole reply."""
        if reply.status >= _ERRORS_FROM:
            await self._give_up_body()
        self.started = True
        self.status = reply.status
        headers = [*reply.head(self._request_id), *self._context.rate_headers, *self._cors]
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
                *(pair for pair in ALWAYS if pair[0] not in said),
                *self._context.rate_headers,
                *self._cors,
            ]
        elif message["type"] == "http.response.body" and self._head:
            message["body"] = b""
        await self._send(message)

    async def _give_up_body(self) -> None:
        """Before an error: releases the quota and drains the unread body."""
        self._context.leave()
        await self._context.discard()
