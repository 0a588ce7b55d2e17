"""`Idempotency-Key`: a retried write is answered as before, and has no second effect.

`claim_key` runs before the handler, `once` around its use case, `settle_key` after an error. What
cannot be read is reported before what the key says, and that before what is not valid.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Final, TypeVar, cast

from litestar import Response

from api.http.context import RequestContext
from api.http.negotiation import Media
from api.http.problems import ERRORS_MAX, TABLE, kind_of
from api.http.request import ApiRequest, check_query
from core import telemetry
from core.errors import (
    BeingDeleted,
    Conflict,
    FieldError,
    InFlight,
    Invalid,
    K9Error,
    ModelBeingDeleted,
    OverShare,
)
from core.repositories.idempotency import Claim, StoredReply
from core.results import Refusal, Result

R = TypeVar("R", bound=Result)

KEY_CHARACTERS_MAX: Final = 255
_KEY: Final = re.compile(rb"[ -~]{1,%d}" % KEY_CHARACTERS_MAX)
_WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_SERVER_ERRORS: Final = 500
_PASSING: Final = (InFlight, BeingDeleted, ModelBeingDeleted, OverShare)
"""Refusals that are not stored: the same request may succeed a little later."""
_ERRORS: Final = {error.__name__: error for error in TABLE}
_RELEASE_S: Final = 0.5
_RELEASING: Final[set[asyncio.Task[None]]] = set()
"""References to running tasks: the event loop keeps weak ones only."""

_log = telemetry.logger(__name__)


async def once(request: ApiRequest, act: Callable[[Claim | None], Awaitable[R]]) -> R:
    """The result of a write: the one stored under its key, else by executing it.

    Args:
        request: The write, which was admitted.
        act: Executes the write and returns its result. It completes the claim in its own
            transaction; without a key there is no claim.
    """
    context = request.context
    if context.stored is not None:
        return cast("R", context.stored)
    claim = context.claim
    result = await act(claim)
    if claim is not None:
        context.claim = None
        await context.app.resources.idempotency.complete(claim, result)
    return result


async def claim_key(request: ApiRequest) -> Response[bytes] | None:
    """Claims the key of a write, or finds what it was answered.

    Returns:
        The reply of an earlier release, as it is; None for all others.

    Raises:
        Unreadable: the body cannot be read.
        Invalid: it is no key.
        KeyReused: it was used for another request.
        InFlight: the same request has not been answered yet.
        K9Error: the request was refused before.
    """
    context = request.context
    if context.idempotency_key is None or context.method not in _WRITES:
        return None
    media: Media = "msgpack" if context.msgpack_out else "json"
    try:
        begun = await context.app.resources.idempotency.begin(
            f"user/{context.caller.user_id}",
            _checked(context.idempotency_key),
            _fingerprint(context),
            media,
        )
    except (Invalid, InFlight):
        check_query(context.query)
        with suppress(Invalid):
            await request.json()
        raise
    if isinstance(begun, Claim):
        context.claim = begun
        return None
    if isinstance(begun, StoredReply):
        return _replayed(begun)
    if isinstance(begun.result, Refusal):
        raise _error(begun.result)
    context.stored = begun.result
    context.first_media_out = cast("Media", begun.media)
    return None


async def settle_key(context: RequestContext, error: BaseException) -> None:
    """Stores a refusal under the key; releases the key after any other error."""
    claim, context.claim = context.claim, None
    if claim is None:
        return
    if (
        not isinstance(error, K9Error)
        or kind_of(error).status >= _SERVER_ERRORS
        or isinstance(error, _PASSING)
    ):
        await asyncio.shield(_release(context, claim))
    else:
        await context.app.resources.idempotency.complete(claim, _refusal(error))


async def _release(context: RequestContext, claim: Claim) -> None:
    """Releases the key, so that a retry can claim it.

    The answer waits for that only briefly, since DynamoDB itself may have failed.
    """
    releasing = asyncio.create_task(_try_to_release(context, claim))
    _RELEASING.add(releasing)
    releasing.add_done_callback(_RELEASING.discard)
    await asyncio.wait({releasing}, timeout=_RELEASE_S)


async def _try_to_release(context: RequestContext, claim: Claim) -> None:
    try:
        await context.app.resources.idempotency.release(claim)
    except K9Error as error:  # the lease ends by itself
        _log.warning("idempotency key not released", error=str(error))


def _checked(raw: bytes) -> str:
    if not _KEY.fullmatch(raw):
        problem = f"takes 1 to {KEY_CHARACTERS_MAX} printable ASCII characters"
        raise Invalid.of(FieldError("Idempotency-Key", problem))
    return raw.decode()


def _fingerprint(context: RequestContext) -> str:
    """A digest of method, path, query, media type and body."""
    digest = sha256()
    for part in (
        context.method.encode(),
        context.path.encode(),
        context.query,
        b"msgpack" if context.msgpack_in else b"json",
        context.data,
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _refusal(error: K9Error) -> Refusal:
    errors = error.errors[:ERRORS_MAX] if isinstance(error, Invalid) else ()
    return Refusal(type(error).__name__, str(error), errors)


def _error(refusal: Refusal) -> K9Error:
    """The error of a refusal; a conflict if a later release stored it with an unknown name."""
    kind = _ERRORS.get(refusal.error, Conflict)
    if issubclass(kind, Invalid):
        return kind(refusal.detail, refusal.errors)
    return kind(refusal.detail)


def _replayed(stored: StoredReply) -> Response[bytes]:
    pairs = zip(stored.headers[::2], stored.headers[1::2], strict=True)
    return Response(
        stored.body, status_code=stored.status, media_type=stored.content_type, headers=dict(pairs)
    )
