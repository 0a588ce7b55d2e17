"""Hints that rows changed, over Redis: who serves a model version then reads just those rows.

A hint is best effort, both ways. It never fails a write nor holds one up, and whoever follows
hints looks at the table now and then as well.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from core import names, telemetry
from core.retry import RetryPolicy
from core.settings import Settings

IDS_MAX: Final = 250
"""Product ids of one message: of 512 bytes each, 128 KB."""
_WAITING_MAX: Final = 20_000
"""Ids that wait to be sent; what comes on top of them is lost."""
_CLOSE_S: Final = 1.0
"""How long the last hints of a process may take."""
_SILENT_S: Final = 5.0
"""A connection on which nothing came for so long is asked whether it lives, and given up when it
is silent for as long again."""
_RECONNECT: Final = RetryPolicy(first_s=0.1, max_s=5.0, jitter=0.5)

_log = telemetry.logger(__name__)


class Hint(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one model version that were written or deleted."""

    model_version: str
    product_ids: tuple[str, ...]
    sent_ms: int
    """Unix time in milliseconds, by the sender's clock."""


_encode: Final = msgspec.msgpack.Encoder().encode
_DECODER: Final = msgspec.msgpack.Decoder(Hint)
_FAILURES: Final = (RedisError, OSError, TimeoutError)


class Hints:
    """Leaves hints, and follows those of all processes of the environment."""

    def __init__(
        self, redis: Redis, channel: str, *, timeout_s: float, product_id_bytes_max: int
    ) -> None:
        self._redis = redis
        self._channel = channel
        self._timeout_s = timeout_s
        self._bytes_max = product_id_bytes_max
        self._waiting: dict[str, dict[str, None]] = {}
        self._count = 0
        self._sending: asyncio.Task[None] | None = None

    def changed(self, model_version: str, product_ids: Iterable[str]) -> None:
        """Says that rows were written or deleted. Returns at once; one task sends what waits."""
        waiting = self._waiting.setdefault(model_version, {})
        before = len(waiting)
        room = _WAITING_MAX - self._count
        for product_id in product_ids:
            if len(waiting) - before < room:
                waiting[product_id] = None
            elif product_id not in waiting:
                telemetry.HINTS_LOST.labels("not sent").inc()
        self._count += len(waiting) - before
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def follow(self) -> AsyncIterator[Hint | None]:
        """Every hint from now on; None each time the listening begins, or begins again.

        What changed before a None may have been missed. Never ends by itself: a connection that
        breaks, or goes silent, is made anew with backoff.
        """
        failures = 0
        while True:
            pubsub = self._redis.pubsub()
            wait_s = 0.0
            try:
                async with asyncio.timeout(self._timeout_s):
                    await pubsub.subscribe(self._channel)
                _heed_cancellation()
                async for hint in _listen(pubsub):
                    failures = 0
                    yield hint and self._sound(hint)
            except _FAILURES as error:
                failures += 1
                wait_s = _RECONNECT.delay_s(failures)
                _log.warning("hints not heard", error=type(error).__name__, again_in_s=wait_s)
            finally:
                await _closed(pubsub)
            await asyncio.sleep(wait_s)

    def _sound(self, hint: Hint) -> Hint:
        """The hint without ids that no product has: DynamoDB refuses to look for some of them."""
        ids = tuple(
            product_id
            for product_id in hint.product_ids[:IDS_MAX]
            if 0 < len(product_id.encode()) <= self._bytes_max
        )
        if len(ids) < len(hint.product_ids):
            telemetry.HINTS_LOST.labels("not understood").inc(len(hint.product_ids) - len(ids))
        return Hint(hint.model_version, ids, hint.sent_ms)

    async def aclose(self) -> None:
        """Sends what waits, for a short time."""
        if self._sending is not None and not self._sending.done():
            _, late = await asyncio.wait({self._sending}, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _send(self) -> None:
        while self._waiting:
            model_version, waiting = self._waiting.popitem()
            self._count -= len(waiting)
            left = iter(waiting)
            while ids := tuple(islice(left, IDS_MAX)):
                hint = Hint(model_version, ids, time.time_ns() // 1_000_000)
                try:
                    async with asyncio.timeout(self._timeout_s):
                        await self._redis.publish(self._channel, _encode(hint))
                except _FAILURES as error:
                    telemetry.HINTS_LOST.labels("not sent").inc(len(ids))
                    _log.debug("hint not sent", error=type(error).__name__)


async def _listen(pubsub: Any) -> AsyncIterator[Hint | None]:
    """What one connection hears, until it fails."""
    asked = False
    while True:
        message = await pubsub.get_message(timeout=_SILENT_S)
        _heed_cancellation()
        if message is None:
            if asked:
                raise TimeoutError
            asked = True
            await pubsub.ping()
            continue
        asked = False
        if message["type"] == "subscribe":
            yield None
        elif message["type"] == "message":
            try:
                hint = _DECODER.decode(message["data"])
            except (ValueError, RecursionError):  # msgspec's errors, and bytes that are no text
                telemetry.HINTS_LOST.labels("not understood").inc()
            else:
                yield hint


def _heed_cancellation() -> None:
    """Raises a cancellation that was swallowed: redis-py's timeouts of 0 s take it for theirs."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _closed(pubsub: Any) -> None:
    with suppress(*_FAILURES):
        await pubsub.aclose()


@asynccontextmanager
async def open_hints(settings: Settings) -> AsyncIterator[Hints]:
    """Hints of the environment; connects at its first use."""
    tls: dict[str, Any] = {}
    if settings.redis_url.startswith("rediss:"):
        tls["ssl_check_hostname"] = True  # redis-py leaves it off
    redis = Redis.from_url(
        settings.redis_url,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 0),
        **tls,
    )
    hints = Hints(
        redis,
        names.channel_name(settings.environment),
        timeout_s=settings.hint_timeout_s,
        product_id_bytes_max=settings.limits.product_id_bytes_max,
    )
    try:
        yield hints
    finally:
        await hints.aclose()
        await redis.aclose()
