"""The client of Valkey for what needs no queue: notifications of changes, and rates."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from core.settings import Settings


@asynccontextmanager
async def open_valkey(settings: Settings) -> AsyncIterator[Redis]:
    """Connects at its first use. A call is tried once: whoever calls goes on without an answer."""
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
    try:
        yield redis
    finally:
        await redis.aclose()
