"""Idempotency keys: the same request twice has one effect and one answer, in any process.

A record is claimed before the effect, under a lease, and completed with the result of the use case
in the very transaction of the effect. So a process that dies between the two leaves either neither
or both. The result is rendered anew each time that it is asked for.

Releases up to 23e14f8 stored the rendered HTTP reply instead, in the state `done`. Such a record is
still replayed. The state of one with a result is new to them: they take it for a request in flight,
and never take it over.
"""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from core import telemetry
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import (
    Condition,
    Update,
    above,
    at_most,
    below,
    equals,
    expressions,
    key,
    missing,
)
from core.dynamo.items import Codec
from core.dynamo.pagination import paginate
from core.dynamo.rows import update_row
from core.dynamo.wire import Item, RequestItem
from core.errors import ConditionFailed, InFlight, KeyReused
from core.repositories import transactions
from core.repositories.transactions import CONFLICTS, Part
from core.repositories.user_deletions import REMOVALS_MAX
from core.results import Result
from core.settings import Settings

_CLAIMED: Final = "open"
_COMPLETED: Final = "completed"
_REPLIED: Final = "done"
"""Of releases up to 23e14f8: completed with an HTTP reply."""
_LASTING: Final = "lasting"
_CHECKPOINT: Final = "chunk_"
"""Prefix of the attributes that say which parts of a large effect have been had."""

_encode_result: Final = msgspec.json.Encoder().encode
_decode_result: Final = msgspec.json.Decoder(Result).decode

_log = telemetry.logger(__name__)


class Claim(msgspec.Struct):
    """The right to have the effect of a request with an idempotency key."""

    table: str
    caller: str
    key: str
    token: str
    """Of this claim alone: whoever lost it completes nothing."""
    result_bytes_max: int
    """A larger result is not stored."""
    checkpoints: frozenset[str] = frozenset()
    """Parts of the effect that an earlier claim has had already."""
    attempted: Result | None = None
    """The result that went into the last transaction that was tried."""

    @property
    def row_key(self) -> RequestItem:
        """The key of its record."""
        return key(caller=self.caller, key=self.key)

    @property
    def holds(self) -> Condition:
        """The condition that it has neither been completed nor lost."""
        return equals("state", _CLAIMED) & equals("token", self.token)

    def checkpoint(self, name: str) -> Part:
        """The part of a transaction that marks one part of a large effect as had, once."""
        attribute = f"{_CHECKPOINT}{name}"
        return transactions.update(
            self.table,
            self.row_key,
            Update(set={attribute: True}),
            self.holds & missing(attribute),
        )


class StoredResult(msgspec.Struct, frozen=True):
    """The result of a request that was completed."""

    result: Result
    media: str
    """The media type that the first answer was in."""


class StoredReply(msgspec.Struct, frozen=True):
    """The HTTP reply to a request that was completed by a release up to 23e14f8."""

    status: int
    content_type: str
    body: bytes
    headers: list[str]
    """Names and values in turn."""


class _Record(msgspec.Struct, frozen=True):
    caller: str
    key: str
    fingerprint: str
    state: str
    token: str
    lease_until_ms: int
    expires_at: int
    media: str = "json"
    result: str = ""
    """A `Result` in JSON."""
    status: int = 0
    content_type: str = ""
    body: bytes = b""
    headers: list[str] = []


_CODEC = Codec(_Record)


def completion(claim: Claim | None, result: Result, *, lasting: bool = False) -> tuple[Part, ...]:
    """The part of a transaction that stores the result, and fails where the claim is lost.

    None without a claim, or where the result is too large to be stored. A lasting record outlives
    its caller's other ones when the caller's user is deleted: sent again, the request that deleted
    a user must not delete the one that was made since.
    """
    if claim is None:
        return ()
    encoded = _encode_result(result)
    if len(encoded) > claim.result_bytes_max:
        return ()
    claim.attempted = result
    change = _completed(encoded, lasting=lasting)
    return (transactions.update(claim.table, claim.row_key, change, claim.holds),)


class IdempotencyRepository:
    """The idempotency table. Expiry is a condition; DynamoDB's TTL only cleans up."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.IDEMPOTENCY.name)
        self._records = settings.records

    async def begin(
        self, caller: str, idempotency_key: str, fingerprint: str, media: str = "json"
    ) -> Claim | StoredResult | StoredReply:
        """The right to act, or what came of the request before.

        Args:
            caller: Whose key it is; keys of two callers never meet.
            idempotency_key: As the caller sent it.
            fingerprint: A digest of method, path, query and body.
            media: The media type that the answer will be in, here and whenever it is given again.

        Raises:
            KeyReused: the key was used for another request within its time.
            InFlight: the same request has not been answered yet.
        """
        async for _ in CONFLICTS.attempts():
            token = secrets.token_hex(16)
            try:
                item = await self._claim(caller, idempotency_key, fingerprint, token, media)
            except ConditionFailed as failed:
                there = failed.item if isinstance(failed.item, dict) else None
                if there is not None and there["token"].S == token:
                    item = there  # the claim was made, and its answer lost on the way
                else:
                    stored = await self._met(there, fingerprint)
                    if stored is not None:
                        return stored
                    continue  # it had expired, and was removed
            bytes_max = self._records.idempotency_body_bytes_max
            return Claim(self._table, caller, idempotency_key, token, bytes_max, _checkpoints(item))
        raise InFlight("another request with this idempotency key is being answered")

    async def finish(self, claim: Claim, result: Result) -> None:
        """Stores a result that went into no transaction: a refusal, or something as found.

        One that was in a transaction, and is the result all the same, was stored by it. Any other
        means that the transaction did not happen, as where a build is open already. The key of a
        result that is too large to be stored is given free.

        Raises:
            InFlight: the claim was lost to a request that came after its lease.
        """
        if result == claim.attempted:
            return
        encoded = _encode_result(result)
        if len(encoded) > claim.result_bytes_max:
            await self.abandon(claim)
            return
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._table,
                Key=claim.row_key,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **expressions(update=_completed(encoded), condition=claim.holds),
            )
        except ConditionFailed as failed:
            there = failed.item
            if not isinstance(there, dict) or there["token"].S != claim.token:
                raise lost() from None
            # It was stored, and the answer to that lost on the way.

    async def abandon(self, claim: Claim) -> None:
        """Gives the key free at once, after a failure that is not stored; checkpoints stay."""
        # Where the condition is not met, it was completed after all, or is another's by now.
        released = Update(set={"lease_until_ms": 0})
        await update_row(self._dynamo, self._table, claim.row_key, released, claim.holds)

    async def removals(self, caller: str) -> AsyncIterator[list[Part]]:
        """What removes the records of a caller, a transaction's at a time; lasting ones stay."""
        async for items in paginate(
            self._dynamo.call,
            "query",
            TableName=self._table,
            ConsistentRead=True,
            Limit=REMOVALS_MAX,
            **expressions(key=equals("caller", caller), projection=("caller", "key", _LASTING)),
        ):
            parts = [
                transactions.delete(self._table, key(caller=caller, key=item["key"].S or ""))
                for item in items
                if _LASTING not in item
            ]
            if parts:
                yield parts

    async def _claim(
        self, caller: str, idempotency_key: str, fingerprint: str, token: str, media: str
    ) -> Item:
        now_s = time.time()
        stalled = (
            equals("state", _CLAIMED)
            & equals("fingerprint", fingerprint)
            & below("lease_until_ms", int(now_s * 1000))
            # The checkpoints of an expired one would pass for parts of the effect of this one.
            & above("expires_at", int(now_s))
        )
        reply = await self._dynamo.call(
            "update_item",
            TableName=self._table,
            Key=key(caller=caller, key=idempotency_key),
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **expressions(
                update=Update(
                    set={
                        "state": _CLAIMED,
                        "fingerprint": fingerprint,
                        "media": media,
                        "token": token,
                        "lease_until_ms": int((now_s + self._records.idempotency_lease_s) * 1000),
                        "expires_at": int(now_s) + self._records.idempotency_ttl_s,
                    }
                ),
                condition=missing("caller") | stalled,
            ),
        )
        item: Item = reply["Attributes"]
        return item

    async def _met(self, item: Item | None, fingerprint: str) -> StoredResult | StoredReply | None:
        """What a record that is there means; None where it had expired and is gone now."""
        if item is None:
            return None
        record = _CODEC.decode(item)
        if record.expires_at <= time.time():
            await self._remove(record)
            return None
        if record.fingerprint != fingerprint:
            raise KeyReused(
                "this idempotency key was used for another request; use a new key for each request"
            )
        if record.state == _REPLIED:
            return StoredReply(record.status, record.content_type, record.body, record.headers)
        if record.state == _COMPLETED:
            try:
                return StoredResult(_decode_result(record.result), record.media)
            except msgspec.DecodeError as error:
                # A later release stored what is not known here: its processes can replay it.
                _log.warning("a stored result cannot be read", reason=str(error))
        raise InFlight("a request with this idempotency key is being answered; try again shortly")

    async def _remove(self, record: _Record) -> None:
        try:
            await self._dynamo.call(
                "delete_item",
                TableName=self._table,
                Key=key(caller=record.caller, key=record.key),
                **expressions(condition=at_most("expires_at", record.expires_at)),
            )
        except ConditionFailed:
            return  # someone else began anew


def lost() -> InFlight:
    """The error of a claim that another request took over."""
    return InFlight("another request with this idempotency key took over; ask again for its answer")


def _completed(encoded: bytes, *, lasting: bool = False) -> Update:
    return Update(set={_LASTING: lasting or None, "state": _COMPLETED, "result": encoded.decode()})


def _checkpoints(item: Item) -> frozenset[str]:
    return frozenset(
        name.removeprefix(_CHECKPOINT) for name in item if name.startswith(_CHECKPOINT)
    )
