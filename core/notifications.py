"""Change notifications over Redis: processes that serve a model version then read those rows.

Delivery is best effort. Publishing never fails or delays a write, and subscribers also poll the
table.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from core import names, telemetry
from core.limits import PRODUCT_ID_BYTES_MAX
from core.retry import RetryPolicy
from core.settings import Settings
from core.valkey import open_valkey

IDS_MAX: Final = 250
"""Product ids in one message: of 512 bytes each, 128 KB."""
_WAITING_MAX: Final = 20_000
"""Ids that may wait to be sent; further ones are dropped."""
_CLOSE_S: Final = 1.0
"""How long sending the last notifications of a process may take."""
_SILENT_S: Final = 5.0
"""A connection that received nothing for this long is pinged, and closed after as long again."""
_RECONNECT: Final = RetryPolicy(first_s=0.1, max_s=5.0, jitter=0.5)

_log = telemetry.logger(__name__)


class ChangeNotification(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one model version that were written or deleted."""

    model_version: str
    product_ids: tuple[str, ...]
    sent_ms: int
    """Unix time in milliseconds, by the sender's clock."""
    attributes_only: bool = False
    """Whether their attributes alone changed; earlier releases read the rows all the same."""


_encode: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final = msgspec.msgpack.Decoder(ChangeNotification)
_FAILURES: Final = (RedisError, OSError, TimeoutError)


class ChangeNotifier:
    """Publishes change notifications, and subscribes to those of the whole environment."""

    def __init__(self, redis: Redis, channel: str, *, timeout_s: float) -> None:
        self._redis = redis
        self._channel = channel
        self._timeout_s = timeout_s
        self._waiting: dict[tuple[str, bool], dict[str, None]] = {}
        """By model version, and whether attributes alone changed; sent in this order."""
        self._count = 0
        self._sending: asyncio.Task[None] | None = None

    def publish(
        self, model_version: str, product_ids: Iterable[str], *, attributes_only: bool = False
    ) -> None:
        """Notifies of rows that were written or deleted. Returns at once; a task sends it.

        Of `attributes_only` the vectors are as they were.
        """
        waiting = self._waiting.setdefault((model_version, attributes_only), {})
        before = len(waiting)
        room = _WAITING_MAX - self._count
        for product_id in product_ids:
            if len(waiting) - before < room:
                waiting[product_id] = None
            elif product_id not in waiting:
                telemetry.NOTIFICATIONS_LOST.labels("not sent").inc()
        self._count += len(waiting) - before
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def subscribe(self) -> AsyncIterator[ChangeNotification | None]:
        """Every notification from now on; None whenever the subscription starts, or starts again.

        Changes before a None may have been missed. Never ends by itself: a connection that breaks
        or goes silent is replaced, with backoff.
        """
        failures = 0
        while True:
            pubsub: Any = self._redis.pubsub()
            wait_s = 0.0
            try:
                async with asyncio.timeout(self._timeout_s):
                    await pubsub.subscribe(self._channel)
                _raise_cancellation()
                async for notification in _listen(pubsub):
                    failures = 0
                    yield notification and _valid(notification)
            except _FAILURES as error:
                failures += 1
                wait_s = _RECONNECT.delay_s(failures)
                _log.warning(
                    "change notifications not received",
                    error=type(error).__name__,
                    retry_in_s=wait_s,
                )
            finally:
                with suppress(*_FAILURES):
                    await pubsub.aclose()
            await asyncio.sleep(wait_s)

    async def aclose(self) -> None:
        """Sends what still waits, for a second at most."""
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=_CLOSE_S)
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def _send(self) -> None:
        while self._waiting:
            model_version, attributes_only = kind = next(iter(self._waiting))
            waiting = self._waiting.pop(kind)
            self._count -= len(waiting)
            left = iter(waiting)
            while ids := tuple(islice(left, IDS_MAX)):
                sent_ms = time.time_ns() // 1_000_000
                notification = ChangeNotification(model_version, ids, sent_ms, attributes_only)
                try:
                    async with asyncio.timeout(self._timeout_s):
                        await self._redis.publish(self._channel, _encode(notification))
                except _FAILURES as error:
                    telemetry.NOTIFICATIONS_LOST.labels("not sent").inc(len(ids))
                    _log.debug("change notification not sent", error=type(error).__name__)


async def _listen(pubsub: Any) -> AsyncIterator[ChangeNotification | None]:
    """What one connection receives, until it fails."""
    pinged = False
    while True:
        message = await pubsub.get_message(timeout=_SILENT_S)
        _raise_cancellation()
        if message is None:
            if pinged:
                raise TimeoutError
            pinged = True
            await pubsub.ping()
            continue
        pinged = False
        if message["type"] == "subscribe":
            yield None
        elif message["type"] == "message":
            try:
                notification = _DECODER.decode(message["data"])
            except (ValueError, RecursionError):  # msgspec's errors, and bytes that are no text
                telemetry.NOTIFICATIONS_LOST.labels("not understood").inc()
            else:
                yield notification


def _valid(notification: ChangeNotification) -> ChangeNotification:
    """The same with valid ids only: DynamoDB rejects a read of any other."""
    ids = tuple(
        product_id
        for product_id in notification.product_ids[:IDS_MAX]
        if 0 < len(product_id.encode()) <= PRODUCT_ID_BYTES_MAX
    )
    dropped = len(notification.product_ids) - len(ids)
    if dropped:
        telemetry.NOTIFICATIONS_LOST.labels("not understood").inc(dropped)
    return msgspec.structs.replace(notification, product_ids=ids)


def _raise_cancellation() -> None:
    """Raises a cancellation that redis-py swallowed: its timeouts of 0 s take it for their own."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@asynccontextmanager
async def open_notifier(settings: Settings) -> AsyncIterator[ChangeNotifier]:
    """The notifier of the environment; connects at its first use."""
    channel = names.channel_name(settings.environment)
    async with open_valkey(settings) as redis:
        notifier = ChangeNotifier(redis, channel, timeout_s=settings.hint_timeout_s)
        try:
            yield notifier
        finally:
            await notifier.aclose()
