"""`Idempotency-Key`: a retried write is answered as before, and has no second effect."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Final, TypeVar, cast

from api.http.context import Call
from api.http.negotiation import Media
from api.http.problems import ERRORS_MAX, TABLE, Reply, invalid, kind_of
from core import telemetry
from core.errors import (
    BeingDeleted,
    Conflict,
    InFlight,
    Invalid,
    K9Error,
    ModelBeingDeleted,
    OverShare,
    Unreadable,
)
from core.repositories.idempotency import Claim, IdempotencyRepository, StoredReply, StoredResult
from core.results import Refusal, Result

Body = TypeVar("Body")
R = TypeVar("R", bound=Result)

KEY_CHARACTERS_MAX: Final = 255
_SERVER_ERRORS: Final = 500
_PASSING: Final = (InFlight, BeingDeleted, ModelBeingDeleted, OverShare)
"""Refusals that are not stored: the same request may succeed a little later."""
_ERRORS: Final = {error.__name__: error for error in TABLE}
_RELEASE_S: Final = 0.5
_RELEASING: Final[set[asyncio.Task[None]]] = set()
"""References to running tasks: the event loop keeps weak ones only."""

_log = telemetry.logger(__name__)


async def answer_once(
    call: Call,
    read: Callable[[Call], Awaitable[Body]],
    act: Callable[[Claim | None, Body], Awaitable[R]],
    render: Callable[[R], Reply],
) -> Reply:
    """Answers a write: with the result stored under its key, else by executing it.

    Errors come in the order: unreadable body, key, invalid body.

    Args:
        call: The request, which was admitted.
        read: Decodes the body.
        act: Executes the request and returns its result. It completes the claim in its own
            transaction; without a key there is no claim.
        render: Makes the reply from the result, for the first answer and for each retry.

    Raises:
        Unreadable: the body cannot be read.
        Invalid: the body or the key is not valid.
        KeyReused: the key was used for another request.
        InFlight: the same request has not been answered yet.
        K9Error: the request is refused, or was the first time.
    """
    if call.idempotency_key is None:
        return render(await act(None, await read(call)))
    body: Body | None = None
    refused: Unreadable | Invalid | None = None
    try:
        body = await read(call)
    except (Unreadable, Invalid) as error:
        refused = error
    begun = await _begin(call, call.idempotency_key, refused)
    if isinstance(begun, Claim):
        records = call.context.resources.idempotency
        async with _settled(records, begun):
            if refused is not None:
                raise refused
            result = await act(begun, cast("Body", body))
        await records.complete(begun, result)
        return render(result)
    if isinstance(begun, StoredReply):
        return _reply(begun)
    if isinstance(begun.result, Refusal):
        raise _error(begun.result)
    call.first_media_out = cast("Media", begun.media)
    return render(cast("R", begun.result))


async def _begin(
    call: Call, key: bytes, refused: Unreadable | Invalid | None
) -> Claim | StoredResult | StoredReply:
    media: Media = "msgpack" if call.msgpack_out else "json"
    caller = f"user/{call.caller.user_id}"
    records = call.context.resources.idempotency
    try:
        return await records.begin(caller, _checked(key), _fingerprint(call), media)
    except (Invalid, InFlight):
        if isinstance(refused, Unreadable):
            raise refused from None
        raise


@asynccontextmanager
async def _settled(records: IdempotencyRepository, claim: Claim) -> AsyncIterator[None]:
    """Stores a refusal that is raised inside; releases the key after any other error."""
    try:
        yield
    except K9Error as error:
        if kind_of(error).status >= _SERVER_ERRORS or isinstance(error, _PASSING):
            await _release(records, claim)
        else:
            await records.complete(claim, _refusal(error))
        raise
    except BaseException:
        await asyncio.shield(_release(records, claim))
        raise


async def _release(records: IdempotencyRepository, claim: Claim) -> None:
    """Releases the key, so that a retry can claim it.

    The answer waits for that only briefly, since DynamoDB itself may have failed.
    """
    releasing = asyncio.create_task(_try_to_release(records, claim))
    _RELEASING.add(releasing)
    releasing.add_done_callback(_RELEASING.discard)
    await asyncio.wait({releasing}, timeout=_RELEASE_S)


async def _try_to_release(records: IdempotencyRepository, claim: Claim) -> None:
    try:
        await records.release(claim)
    except K9Error as error:  # the lease ends by itself
        _log.warning("idempotency key not released", error=str(error))


def _checked(raw: bytes) -> str:
    if (
        not 1 <= len(raw) <= KEY_CHARACTERS_MAX
        or not raw.isascii()
        or not raw.decode().isprintable()
    ):
        raise invalid(
            "Idempotency-Key", f"takes 1 to {KEY_CHARACTERS_MAX} printable ASCII characters"
        )
    return raw.decode()


async def nothing(_call: Call) -> None:
    """For a request without a body."""


def _fingerprint(call: Call) -> str:
    """A digest of method, path, query, media type and body."""
    digest = sha256()
    for part in (
        call.method.encode(),
        call.path.encode(),
        call.query,
        b"msgpack" if call.msgpack_in else b"json",
        call.data,
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


def _reply(stored: StoredReply) -> Reply:
    raw = [text.encode("latin-1") for text in stored.headers]
    headers = tuple(zip(raw[::2], raw[1::2], strict=True))
    return Reply(stored.status, stored.body, stored.content_type, headers)
