"""`Idempotency-Key`: a write that is sent again answers as before, and has no second effect."""

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final, TypeVar, cast

from api.http.context import Call
from api.http.problems import Reply, invalid, problem_reply
from core import telemetry
from core.errors import InFlight, Invalid, K9Error, Unreadable
from core.repositories.idempotency import Claim, IdempotencyRepository, Kept
from core.repositories.transactions import Part
from core.usecases.embeddings import Noting

T = TypeVar("T")

KEY_CHARACTERS_MAX: Final = 255
_SERVER_ERRORS: Final = 500
_FREE_S: Final = 0.5
_FREEING: Final[set[asyncio.Task[None]]] = set()
"""Held until they are done: the loop itself does not hold its tasks."""

_log = telemetry.logger(__name__)


class Once:
    """One write under its key, or under none."""

    def __init__(
        self, records: IdempotencyRepository, claim: Claim | None, body_bytes_max: int
    ) -> None:
        self.records = records
        self.claim = claim
        """None where the request has no key."""
        self._handed: Reply | None = None
        """The answer that went into the last transaction that was tried."""
        self._body_bytes_max = body_bytes_max

    def parts(self, reply: Reply, *, lasting: bool = False) -> tuple[Part, ...]:
        """What goes into the transaction of the effect, so that both happen or neither.

        A lasting answer outlives the caller's profile: sent again, the request that deleted it
        must not delete the one that was made since.
        """
        if self.claim is None or len(reply.body) > self._body_bytes_max:
            return ()
        self._handed = reply
        return (self.records.completion(self.claim, _kept(reply), lasting=lasting),)

    @property
    def noting(self) -> Noting | None:
        """How the parts of a large effect are noted; None where the request has no key."""
        claim = self.claim
        if claim is None:
            return None
        return Noting(lambda name: self.records.chunk(claim, name), claim.chunks)

    async def finish(self, reply: Reply) -> None:
        """Keeps an answer that went into no transaction: a refusal, or something as found.

        One that was handed to a transaction and is given all the same was kept by it; any other
        means that it did not happen, as where a build is open already.
        """
        if self.claim is not None and reply != self._handed:
            if len(reply.body) > self._body_bytes_max:
                await self.abandon()
            else:
                await self.records.finish(self.claim, _kept(reply))

    async def abandon(self) -> None:
        """Gives the key free: what failed here is not kept.

        The answer waits for that a short while only: what failed may be DynamoDB itself.
        """
        if self.claim is not None:
            freeing = asyncio.create_task(self._free(self.claim))
            _FREEING.add(freeing)
            freeing.add_done_callback(_FREEING.discard)
            await asyncio.wait({freeing}, timeout=_FREE_S)

    async def _free(self, claim: Claim) -> None:
        try:
            await self.records.abandon(claim)
        except K9Error as error:  # its lease ends by itself
            _log.warning("idempotency key not freed", error=str(error))


async def once(
    call: Call,
    read: Callable[[Call], Awaitable[T]],
    act: Callable[[Once, T], Awaitable[Reply]],
) -> Reply:
    """Answers a write: as before where its key was answered, else by acting.

    What cannot be read is told before what the key says, and that before what is not valid.

    Args:
        call: The request, which has begun.
        read: Decodes what was sent.
        act: Has the effect, with `Once.parts` in its transaction, and answers.

    Raises:
        Unreadable: what was sent cannot be read.
        Invalid: it is not valid, or the key is not.
        KeyReused: it was used for another request.
        InFlight: the same request has not been answered yet.
    """
    resources = call.context.resources
    body_bytes_max = call.context.settings.records.idempotency_body_bytes_max
    if call.idempotency_key is None:
        return await act(Once(resources.idempotency, None, body_bytes_max), await read(call))
    sent: T | None = None
    refused: Unreadable | Invalid | None = None
    try:
        sent = await read(call)
    except (Unreadable, Invalid) as error:
        refused = error
    try:
        key = _checked(call.idempotency_key)
        begun = await resources.idempotency.begin(
            f"user/{call.caller.user_id}", key, _fingerprint(call)
        )
    except (Invalid, InFlight):
        if isinstance(refused, Unreadable):
            raise refused from None
        raise
    if isinstance(begun, Kept):
        return _reply(begun)
    running = Once(resources.idempotency, begun, body_bytes_max)
    try:
        if refused is not None:
            raise refused  # noqa: TRY301 - kept as any other answer
        reply = await act(running, cast("T", sent))
    except K9Error as error:
        reply = problem_reply(error)
        if reply.status >= _SERVER_ERRORS:
            await running.abandon()
            raise
    except BaseException:
        await asyncio.shield(running.abandon())
        raise
    await running.finish(reply)
    return reply


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
    """Reads what is sent with a request that takes no body."""


def _fingerprint(call: Call) -> str:
    """Tells two requests apart by method, path, query, type and body."""
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


def _kept(reply: Reply) -> Kept:
    headers = [text.decode("latin-1") for pair in reply.headers for text in pair]
    return Kept(reply.status, reply.content_type, reply.body, headers)


def _reply(kept: Kept) -> Reply:
    raw = [text.encode("latin-1") for text in kept.headers]
    return Reply(
        kept.status, kept.body, kept.content_type, tuple(zip(raw[::2], raw[1::2], strict=True))
    )
