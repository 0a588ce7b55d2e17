"""What every request passes between the router and its handler, in the contract's order.

The router answers 404 and 405. Then the token is verified (401), the handler's own guards hold the
caller's rights against the route (403), and the request is admitted with its body (429, 413, 415).
"""

from typing import Any, Final

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from api.auth.tokens import CALLER
from api.http.context import ANY, CALL, RECORD, Call, call_in

OPEN: Final = frozenset({"/health/live", "/health/ready", "/docs", "/openapi.json"})
"""Routes that take no token, and are answered however busy the process is."""
READINESS: Final = "/health/ready"
"""Open, and says more to a caller with a valid token."""
BODY: Final = "body"
"""The option of a handler that says what its body carries: `vector`, `batch`, or a `record`, which
is JSON alone; without it a few parameters. `search` admits itself."""


async def authenticated(
    connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler
) -> None:
    """Guard of all routes that are not open.

    Raises:
        Unauthenticated: there is no valid token.
    """
    call: Call = connection.scope[CALL]  # type: ignore[typeddict-item] # the key is ours
    authenticator = call.context.authenticator
    if call.path == READINESS:
        call.known_caller = authenticator.caller_or_stranger(call.authorization)
    elif call.path not in OPEN:
        call.known_caller = authenticator.caller(call.authorization)
    connection.scope[CALLER] = call.known_caller  # type: ignore[typeddict-unknown-key]


async def admitted(request: Request[Any, Any, Any]) -> None:
    """Admits a request to a handler, once its body is here; see `Call.begin`."""
    call = call_in(request)
    kind = request.route_handler.opt.get(BODY)
    if call.path in OPEN or kind == "search":
        return
    share = call.context.admission.calls
    if call.method in {"GET", "HEAD"}:
        call.enter(share)
    else:
        body_bytes_max: int = getattr(call.context.body_limits, kind or "record")
        await call.begin(share, body_bytes_max, RECORD if kind == "record" else ANY)
