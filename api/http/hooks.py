"""What Litestar calls around every handler, in the order of the contract.

The router answers 404 and 405. Guards verify the token (401) and check the caller's rights (403).
`prepare` admits the request with its body (429, 413, 415) and claims its idempotency key; Litestar
would run a middleware before the guards. Then Litestar decodes the body (400, 422) and validates
parameters (422), and the handler does the rest.
"""

from typing import Any, Final

from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from api.http.context import ANY, CONTEXT, RECORD, RequestContext, context_in
from api.http.idempotency import claim_key, settle_key
from api.http.problems import as_k9_error, log_failure, problem_reply
from api.http.rates import check_rate
from api.http.request import JSON_ONLY, ApiRequest, check_query
from core.errors import Forbidden, NewerFormat, Unauthenticated, Unavailable

OPEN: Final = "open"
"""The option of a handler that takes no token, and is answered however busy the process is."""
BODY: Final = "body"
"""The option of a handler that says what it carries: a `vector`, a `batch`, a `search`, which is
answered from memory and no write; others carry a `record`."""

Connection = ASGIConnection[Any, Any, Any, Any]


async def authenticate(connection: Connection, handler: BaseRouteHandler) -> None:
    """Guard of all routes; one that is open takes a valid token too, and says more to its caller.

    Raises:
        Unauthenticated: there is no valid token.
    """
    context = context_in(connection.scope)
    authenticator = context.app.authenticator
    try:
        context.known_caller = authenticator.caller(context.authorization)
    except (Unauthenticated, Unavailable):
        if not handler.opt.get(OPEN):
            raise


async def readers(connection: Connection, _handler: BaseRouteHandler) -> None:
    """Guard: readers, and operators, who may read all; to others `Forbidden`."""
    if not context_in(connection.scope).caller.reader:
        raise Forbidden("this takes the group `readers` or the scope `k9/read`")


async def operators(connection: Connection, _handler: BaseRouteHandler) -> None:
    """Guard: operators; to others `Forbidden`."""
    if not context_in(connection.scope).caller.operator:
        raise Forbidden("this takes the group `operators` or the scope `k9/operate`")


async def prepare(request: ApiRequest) -> Response[bytes] | None:
    """Admits a request with its body, and claims its idempotency key.

    Returns:
        The reply of a request that an earlier release answered, and None for all others.

    Raises:
        OverShare, Overloaded, TooLarge, NotAcceptedType: as `RequestContext.begin` says.
        Unreadable: the query or the body cannot be read.
        KeyReused, InFlight, Invalid: as `claim_key` says.
        NewerFormat: a later release has changed the tables.
    """
    context, opt = request.context, request.route_handler.opt
    if opt.get(OPEN):
        return None
    kind, admission = opt.get(BODY, "record"), context.app.admission
    # Searches are answered from memory, until requests are sent elsewhere.
    if kind != "search" and context.app.health.outdated is not None:
        raise NewerFormat(context.app.health.outdated)
    if (rates := context.app.rates) is not None:
        await check_rate(context, rates)
    if context.method in {"GET", "HEAD"}:
        context.enter(admission.reads if kind == "search" else admission.calls)
    elif kind == "search":
        await context.begin_search(request.path_params["model_version"])
    else:
        body_bytes_max: int = getattr(context.app.body_limits, kind)
        media = RECORD if opt.get(JSON_ONLY) else ANY
        await context.begin(admission.calls, body_bytes_max, media)
    reply = None if kind == "search" else await claim_key(request)
    check_query(context.query)
    return reply


async def settle(error: Exception, scope: Scope) -> None:
    """After an error: stores it under the idempotency key, or releases the key."""
    context: RequestContext | None = scope.get(CONTEXT)  # type: ignore[assignment] # ours
    if context is not None and context.claim is not None:
        await settle_key(context, as_k9_error(error))


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """The answer to any error, as a problem detail."""
    context = context_in(request.scope)
    log_failure(error, context.request_id, context.method)
    reply = problem_reply(error)
    return Response(
        reply.body,
        status_code=reply.status,
        media_type=reply.content_type,
        headers={name.decode(): value.decode() for name, value in reply.headers},
    )
