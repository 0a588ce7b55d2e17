"""Idempotency keys as release 23e14f8 treats them: its `core/repositories/idempotency.py`, shorter.

During a rolling upgrade its processes read and write the same table.
"""

import secrets
import time

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, above, below, equals, expressions, key, missing
from core.dynamo.items import Codec
from core.dynamo.wire import Item
from core.errors import ConditionFailed, InFlight, KeyReused
from core.settings import Settings

_OPEN, _DONE = "open", "done"
_TRIES = 3


class Kept(msgspec.Struct, frozen=True):
    """An answer as it was given."""

    status: int
    content_type: str
    body: bytes
    headers: list[str]


class EarlierClaim(msgspec.Struct, frozen=True):
    """The right to have the effect of a key."""

    caller: str
    key: str
    token: str


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


class EarlierIdempotency:
    """The idempotency table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.IDEMPOTENCY.name)
        self._records = settings.records

    async def begin(
        self, caller: str, idempotency_key: str, fingerprint: str
    ) -> EarlierClaim | Kept:
        """The right to act, or the answer that was given before."""
        for _ in range(_TRIES):
            token = secrets.token_hex(16)
            try:
                await self._claim(caller, idempotency_key, fingerprint, token)
            except ConditionFailed as failed:
                there = failed.item if isinstance(failed.item, dict) else None
                answer = await self._met(there, fingerprint)
                if answer is not None:
                    return answer
                continue
            return EarlierClaim(caller, idempotency_key, token)
        raise InFlight("another request with this idempotency key is being answered")

    async def finish(self, claim: EarlierClaim, kept: Kept) -> None:
        """Keeps an answer."""
        await self._dynamo.call(
            "update_item",
            TableName=self._table,
            Key=key(caller=claim.caller, key=claim.key),
            **expressions(
                update=Update(
                    set={
                        "state": _DONE,
                        "status": kept.status,
                        "content_type": kept.content_type,
                        "body": kept.body,
                        "headers": list(kept.headers),
                    }
                ),
                condition=equals("state", _OPEN) & equals("token", claim.token),
            ),
        )

    async def _claim(self, caller: str, idempotency_key: str, fingerprint: str, token: str) -> None:
        now_s = time.time()
        stalled = (
            equals("state", _OPEN)
            & equals("fingerprint", fingerprint)
            & below("lease_until_ms", int(now_s * 1000))
            & above("expires_at", int(now_s))
        )
        await self._dynamo.call(
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

    async def _met(self, item: Item | None, fingerprint: str) -> Kept | None:
        if item is None:
            return None
        record = _CODEC.decode(item)
        if record.expires_at <= time.time():
            await self._dynamo.call(
                "delete_item",
                TableName=self._table,
                Key=key(caller=record.caller, key=record.key),
                **expressions(condition=below("expires_at", record.expires_at + 1)),
            )
            return None
        if record.fingerprint != fingerprint:
            raise KeyReused("this idempotency key was used for another request")
        if record.state == _DONE:
            return Kept(record.status, record.content_type, record.body, record.headers)
        raise InFlight("a request with this idempotency key is being answered; try again shortly")
