"""Idempotency keys: a request that is sent twice has one effect and one answer, in any process.

A key is claimed before the effect, under a lease, and completed with the result of the use case in
the transaction of the effect itself. A process that dies in between leaves neither or both. The
result is rendered anew for each answer.

Releases up to 23e14f8 store the rendered HTTP reply instead, in the state `done`; such records are
replayed until they expire. Those releases do not know the state of a record with a result: they
treat it as a request in flight, and never take it over.
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
    below,
    equals,
    expressions,
    key,
    missing,
)
from core.dynamo.items import Codec
from core.dynamo.pagination import paginate
from core.dynamo.rows import delete_row, update_row
from core.dynamo.wire import Item, RequestItem
from core.errors import ConditionFailed, InFlight, KeyReused
from core.repositories import transactions
from core.repositories.transactions import CONFLICTS, Part, claim_lost
from core.repositories.user_deletions import REMOVALS_MAX
from core.results import Result
from core.settings import Settings

_CLAIMED: Final = "open"
_COMPLETED: Final = "completed"
_REPLIED: Final = "done"
"""Completed by a release up to 23e14f8, with an HTTP reply."""
_LASTING: Final = "lasting"
_CHECKPOINT: Final = "chunk_"
"""Prefix of the attributes that record which parts of a large effect are done."""

_encode_result: Final = msgspec.json.Encoder().encode
_decode_result: Final = msgspec.json.Decoder(Result).decode

_log = telemetry.logger(__name__)


class Claim(msgspec.Struct):
    """The exclusive right to execute the request of a key."""

    table: str
    caller: str
    key: str
    token: str
    """Unique to this claim, so that one that was taken over completes nothing."""
    result_bytes_max: int
    """A larger result is not stored."""
    checkpoints: frozenset[str] = frozenset()
    """Parts of the effect that an earlier claim has completed."""
    attempted: Result | None = None
    """The result in the last transaction that was attempted."""

    @property
    def row_key(self) -> RequestItem:
        """The key of its record."""
        return key(caller=self.caller, key=self.key)

    @property
    def is_held(self) -> Condition:
        """The condition that the claim was neither completed nor taken over."""
        return equals("state", _CLAIMED) & equals("token", self.token)

    def checkpoint(self, name: str) -> Part:
        """The transaction part that records one part of a large effect, and fails if it was."""
        attribute = f"{_CHECKPOINT}{name}"
        return transactions.update(
            self.table,
            self.row_key,
            Update(set={attribute: True}),
            self.is_held & missing(attribute),
        )


class StoredResult(msgspec.Struct, frozen=True):
    """The result of a request that was completed."""

    result: Result
    media: str
    """The media type of the first answer."""


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
    """The transaction part that stores the result, and fails if the claim was taken over.

    Empty without a claim, or if the result is too large to be stored. A lasting record is kept
    when the caller's user is deleted: otherwise a repeated deletion request would delete the
    profile that was created since.
    """
    if claim is None:
        return ()
    encoded = _encode_result(result)
    if len(encoded) > claim.result_bytes_max:
        return ()
    claim.attempted = result
    change = _completed(encoded, lasting=lasting)
    return (transactions.update(claim.table, claim.row_key, change, claim.is_held),)


class IdempotencyRepository:
    """The idempotency table. Expiry is checked on each read; DynamoDB's TTL only cleans up."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.IDEMPOTENCY.name)
        self._records = settings.records

    async def begin(
        self, caller: str, idempotency_key: str, fingerprint: str, media: str = "json"
    ) -> Claim | StoredResult | StoredReply:
        """Claims a key of a caller, or returns what is stored under it.

        `fingerprint` is a digest of method, path, query and body; `media` is the media type of the
        answer, for this request and its retries.

        Raises:
            KeyReused: the key was used for another request and has not expired.
            InFlight: the same request has not been answered yet.
        """
        async for _ in CONFLICTS.attempts():
            token = secrets.token_hex(16)
            try:
                item = await self._claim(caller, idempotency_key, fingerprint, token, media)
            except ConditionFailed as failed:
                item = failed.item
                if item is None or item["token"].S != token:
                    stored = await self._stored(item, fingerprint)
                    if stored is not None:
                        return stored
                    continue  # it had expired, and was removed
                # Else it was claimed by this call, whose first answer was lost.
            bytes_max = self._records.idempotency_body_bytes_max
            done = frozenset(
                name.removeprefix(_CHECKPOINT) for name in item if name.startswith(_CHECKPOINT)
            )
            return Claim(self._table, caller, idempotency_key, token, bytes_max, done)
        raise InFlight("another request with this idempotency key is being answered")

    async def complete(self, claim: Claim, result: Result) -> None:
        """Stores a result, unless a transaction has stored it.

        A result that differs from the attempted one means that the transaction was not made, as
        when a build is already open. If the result is too large to be stored, the key is released.

        Raises:
            InFlight: another request has taken over the claim.
        """
        if result == claim.attempted:
            return
        encoded = _encode_result(result)
        if len(encoded) > claim.result_bytes_max:
            await self.release(claim)
            return
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._table,
                Key=claim.row_key,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **expressions(update=_completed(encoded), condition=claim.is_held),
            )
        except ConditionFailed as failed:
            if failed.item is None or failed.item["token"].S != claim.token:
                raise claim_lost() from None
            # Stored by this call, whose first answer was lost.

    async def release(self, claim: Claim) -> None:
        """Ends the lease, so that a retry can claim the key at once; checkpoints are kept.

        Does nothing if the claim was completed or taken over.
        """
        ended = Update(set={"lease_until_ms": 0})
        await update_row(self._dynamo, self._table, claim.row_key, ended, claim.is_held)

    async def removals(self, caller: str) -> AsyncIterator[list[Part]]:
        """Transaction parts that remove a caller's records, except lasting ones, in batches."""
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
        lease_ended = (
            equals("state", _CLAIMED)
            & equals("fingerprint", fingerprint)
            & below("lease_until_ms", int(now_s * 1000))
            # An expired record's checkpoints do not belong to the effect of this request.
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
                condition=missing("caller") | lease_ended,
            ),
        )
        item: Item = reply["Attributes"]
        return item

    async def _stored(
        self, existing: Item | None, fingerprint: str
    ) -> StoredResult | StoredReply | None:
        """What an existing record answers with; None if it had expired and is removed now."""
        if existing is None:
            return None
        record = _CODEC.decode(existing)
        if record.expires_at <= time.time():
            record_key = key(caller=record.caller, key=record.key)
            unchanged = equals("expires_at", record.expires_at)
            await delete_row(self._dynamo, self._table, record_key, unchanged)
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
                # Stored by a later release, whose processes can replay it.
                _log.warning("a stored result cannot be read", reason=str(error))
        raise InFlight("a request with this idempotency key is being answered; try again shortly")


def _completed(encoded: bytes, *, lasting: bool = False) -> Update:
    return Update(set={_LASTING: lasting or None, "state": _COMPLETED, "result": encoded.decode()})
