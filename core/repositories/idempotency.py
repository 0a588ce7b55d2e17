"""Idempotency keys: the same request twice has one effect and one answer, in any process.

A record is claimed before the effect, under a lease, and completed with the answer in the very
transaction of the effect. So a process that dies between the two leaves either neither or both.
"""

import secrets
import time
from collections.abc import AsyncIterator

import msgspec

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
from core.dynamo.wire import Item, request_item
from core.errors import ConditionFailed, InFlight, KeyReused
from core.repositories import transactions
from core.repositories.deletions import REMOVALS_MAX
from core.repositories.transactions import Part
from core.settings import Settings

_OPEN, _DONE = "open", "done"
_LASTING = "lasting"
_TRIES = 3


class Kept(msgspec.Struct, frozen=True):
    """An answer as it was given."""

    status: int
    content_type: str
    body: bytes
    headers: list[str]
    """Names and values in turn."""


class Claim(msgspec.Struct, frozen=True):
    """The right to have the effect of a key."""

    caller: str
    key: str
    token: str
    """Of this claim alone: whoever lost it completes nothing."""
    chunks: frozenset[str] = frozenset()
    """Parts of the effect that an earlier claim has had already."""


class _Record(msgspec.Struct, frozen=True):
    caller: str
    key: str
    fingerprint: str
    state: str
    token: str
    lease_until_ms: int
    expires_at: int
    status: int = 0
    content_type: str = ""
    body: bytes = b""
    headers: list[str] = []


_CODEC = Codec(_Record)


class IdempotencyRepository:
    """The idempotency table. Expiry is a condition; DynamoDB's TTL only cleans up."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.IDEMPOTENCY.name)
        self._records = settings.records

    async def begin(self, caller: str, idempotency_key: str, fingerprint: str) -> Claim | Kept:
        """The right to act, or the answer that was given before.

        Args:
            caller: Whose key it is; keys of two callers never meet.
            idempotency_key: As the caller sent it.
            fingerprint: A digest of method, path, query and body.

        Raises:
            KeyReused: the key was used for another request within its time.
            InFlight: the same request has not been answered yet.
        """
        for _ in range(_TRIES):
            token = secrets.token_hex(16)
            try:
                item = await self._claim(caller, idempotency_key, fingerprint, token)
            except ConditionFailed as failed:
                there = failed.item if isinstance(failed.item, dict) else None
                if there is not None and there["token"].S == token:
                    item = there  # the claim was made, and its answer lost on the way
                else:
                    answer = await self._met(there, fingerprint)
                    if answer is not None:
                        return answer
                    continue  # it had expired, and was removed
            return Claim(caller, idempotency_key, token, _chunks(item))
        raise InFlight("another request with this idempotency key is being answered")

    def completion(self, claim: Claim, kept: Kept, *, lasting: bool = False) -> Part:
        """The part of a transaction that keeps the answer, and fails where the claim is lost.

        A lasting record outlives its caller's other ones when the caller's user is deleted.
        """
        return transactions.update(
            self._table, self._key(claim), _completed(kept, lasting=lasting), self._ours(claim)
        )

    def chunk(self, claim: Claim, name: str) -> Part:
        """The part of a transaction that notes a part of a large effect, once."""
        return transactions.update(
            self._table,
            self._key(claim),
            Update(set={_chunk_name(name): True}),
            self._ours(claim) & missing(_chunk_name(name)),
        )

    async def finish(self, claim: Claim, kept: Kept) -> None:
        """Keeps an answer that had no effect of its own to go with.

        Raises:
            InFlight: the claim was lost to a request that came after its lease.
        """
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._table,
                Key=self._key(claim),
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **expressions(update=_completed(kept), condition=self._ours(claim)),
            )
        except ConditionFailed as failed:
            there = failed.item
            if not isinstance(there, dict) or there["token"].S != claim.token:
                raise lost() from None
            # It was kept, and the answer to that lost on the way.

    async def abandon(self, claim: Claim) -> None:
        """Gives the key free at once, after a failure that is not kept; noted parts stay."""
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._table,
                Key=self._key(claim),
                **expressions(
                    update=Update(set={"lease_until_ms": 0}), condition=self._ours(claim)
                ),
            )
        except ConditionFailed:
            return  # completed after all, or another's by now

    async def removals(self, caller: str) -> AsyncIterator[list[Part]]:
        """What removes the records of a caller, a transaction's at a time; lasting ones stay."""
        start: dict[str, object] = {}
        while True:
            reply = await self._dynamo.call(
                "query",
                TableName=self._table,
                ConsistentRead=True,
                Limit=REMOVALS_MAX,
                **start,
                **expressions(key=equals("caller", caller), projection=("caller", "key", _LASTING)),
            )
            parts = [
                transactions.delete(self._table, key(caller=caller, key=item["key"].S or ""))
                for item in reply["Items"]
                if _LASTING not in item
            ]
            if parts:
                yield parts
            if "LastEvaluatedKey" not in reply:
                return
            start = {"ExclusiveStartKey": request_item(reply["LastEvaluatedKey"])}

    async def _claim(self, caller: str, idempotency_key: str, fingerprint: str, token: str) -> Item:
        now_s = time.time()
        stalled = (
            equals("state", _OPEN)
            & equals("fingerprint", fingerprint)
            & below("lease_until_ms", int(now_s * 1000))
            # What an expired one had noted would pass for a part of the effect of this one.
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
                        "state": _OPEN,
                        "fingerprint": fingerprint,
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

    async def _met(self, item: Item | None, fingerprint: str) -> Kept | None:
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
        if record.state == _DONE:
            return Kept(record.status, record.content_type, record.body, record.headers)
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

    def _key(self, claim: Claim) -> dict[str, dict[str, str]]:
        return key(caller=claim.caller, key=claim.key)

    def _ours(self, claim: Claim) -> Condition:
        return equals("state", _OPEN) & equals("token", claim.token)


def lost() -> InFlight:
    """The error of a claim that another request took over."""
    return InFlight("another request with this idempotency key took over; ask again for its answer")


def _completed(kept: Kept, *, lasting: bool = False) -> Update:
    return Update(
        set={
            _LASTING: lasting or None,
            "state": _DONE,
            "status": kept.status,
            "content_type": kept.content_type,
            "body": kept.body,
            "headers": list(kept.headers),
        }
    )


def _chunk_name(name: str) -> str:
    return f"chunk_{name}"


def _chunks(item: Item) -> frozenset[str]:
    prefix = _chunk_name("")
    return frozenset(name.removeprefix(prefix) for name in item if name.startswith(prefix))
