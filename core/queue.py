"""The contract of API and worker: job names, payloads, serializer, enqueue.

Redis only wakes workers up. The builds table is authoritative, so that losing a message, or all of
Redis, loses nothing: the reconciler enqueues what the table shows open.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import msgspec
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from core import names, telemetry, tracing
from core.errors import SettingsError, Unavailable
from core.models import Build, Import
from core.settings import Settings

BUILD_JOB = "run_build"
IMPORT_JOB = "run_import"
DELETION_JOB = "remove_user"
"""Not `delete_user`: workers of releases that delete without a lease take jobs of that name."""

_log = telemetry.logger(__name__)


class BuildJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """Run a build: which one, and the fence that its claim raises."""

    build_id: str
    fence: int
    trace: str | None = None
    """As in the build's record, so that the claim belongs to the trace too."""

    @classmethod
    def of(cls, build: Build) -> Self:
        """The next attempt at a build."""
        return cls(build.build_id, build.fence, build.trace)


class ImportJob(msgspec.Struct, frozen=True, omit_defaults=True):
    """Run an import: which one, and the fence that its claim raises."""

    import_id: str
    fence: int
    trace: str | None = None
    """As in the import's record, so that the claim belongs to the trace too."""

    @classmethod
    def of(cls, row: Import) -> Self:
        """The next attempt at an import."""
        return cls(row.import_id, row.fence, row.trace)


class DeletionJob(msgspec.Struct, frozen=True):
    """Remove the profile and reports of a user."""

    user_id: str


serialize = msgspec.msgpack.Encoder(enc_hook=repr).encode
"""Msgpack, never pickle: write access to Redis must not allow code execution here."""
deserialize = msgspec.msgpack.Decoder().decode
"""The inverse; Structs come back as dicts."""


def redis_settings(settings: Settings) -> RedisSettings:
    """Where Redis is, for arq's worker.

    Raises:
        SettingsError: the address cannot be read.
    """
    try:
        parsed = RedisSettings.from_dsn(settings.redis_url)
    except (RuntimeError, ValueError):
        raise SettingsError(
            "REDIS_URL is no address of Redis: redis://host:port/0, or rediss:// for TLS"
        ) from None
    parsed.conn_timeout = max(1, round(settings.redis_timeout_s))
    parsed.ssl_check_hostname = parsed.ssl  # arq leaves it off, which trusts any certificate holder
    return parsed


class RedisServer(msgspec.Struct, frozen=True):
    """What a Redis says of itself."""

    version: str
    maxmemory: int
    """Bytes; 0: no limit."""
    maxmemory_policy: str
    """What it does at that limit: `noeviction`, `allkeys-lru` and so on."""


class JobQueue:
    """Enqueues jobs for the workers."""

    def __init__(self, redis: ArqRedis, settings: Settings) -> None:
        self.redis = redis
        self.name = names.queue_name(settings.environment)
        self._settings = settings

    async def enqueue(self, build_id: str, fence: int, trace: str | None = None) -> bool:
        """Enqueues a build. False when Redis did not take it: the reconciler enqueues it later.

        The job id contains the fence, since arq keeps a killed worker's id blocked for as long as
        the longest job may take.
        """
        return await self._enqueue_traced(BUILD_JOB, BuildJob(build_id, fence, trace), build_id)

    async def enqueue_import(self, import_id: str, fence: int, trace: str | None = None) -> bool:
        """Enqueues an import, as a build.

        A worker of a release without imports takes the job and drops it: the reconciler of another
        one finds the import in the table.
        """
        return await self._enqueue_traced(IMPORT_JOB, ImportJob(import_id, fence, trace), import_id)

    async def _enqueue_traced(self, name: str, job: BuildJob | ImportJob, row_id: str) -> bool:
        with tracing.span(f"enqueue {name}", "producer", parent=job.trace, root=False) as span:
            enqueued = await self._enqueue(name, job, row_id, job.fence)
            if not enqueued:
                span.fail("Unavailable")
        return enqueued

    async def enqueue_deletion(self, user_id: str) -> bool:
        """Enqueues the deletion of a user. False when Redis did not take it."""
        return await self._enqueue(DELETION_JOB, DeletionJob(user_id), "delete", user_id, 0)

    async def _enqueue(self, job: str, payload: msgspec.Struct, *parts: object) -> bool:
        job_id = names.job_id(self._settings.environment, *parts)
        try:
            async with asyncio.timeout(self._settings.hint_timeout_s):
                await self.redis.enqueue_job(job, payload, _job_id=job_id, _queue_name=self.name)
        except (RedisError, OSError, TimeoutError) as error:
            telemetry.ENQUEUE_FAILED.inc()
            _log.warning("enqueue lost", job_id=job_id, error=type(error).__name__)
            return False
        return True

    async def depth(self) -> int | None:
        """The number of jobs that no worker has taken; None when Redis does not answer in time."""
        try:
            async with asyncio.timeout(self._settings.redis_timeout_s):
                return int(await self.redis.zcard(self.name))
        except (RedisError, OSError, TimeoutError):
            return None

    async def ping(self) -> bool:
        """Whether Redis answers in time."""
        try:
            async with asyncio.timeout(self._settings.redis_timeout_s):
                return bool(await self.redis.ping())
        except (RedisError, OSError, TimeoutError):
            return False

    async def describe(self) -> RedisServer:
        """What Redis says of itself.

        Raises:
            Unavailable: it does not answer in time, or does not accept the password.
        """
        try:
            async with asyncio.timeout(self._settings.redis_timeout_s):
                info: dict[str, Any] = await self.redis.info()
        except TimeoutError:
            limit_s = self._settings.redis_timeout_s
            raise Unavailable(f"Redis did not answer within {limit_s:g} s") from None
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis: {type(error).__name__}: {error}") from error
        return RedisServer(
            str(info.get("valkey_version") or info.get("redis_version", "")),
            int(info.get("maxmemory", 0)),
            str(info.get("maxmemory_policy", "")),
        )


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[JobQueue]:
    """A queue that connects at its first use, so that a process starts without Redis."""
    where = redis_settings(settings)
    redis = ArqRedis(
        host=str(where.host),
        port=where.port,
        db=where.database,
        username=where.username,
        password=where.password,
        unix_socket_path=where.unix_socket_path,
        ssl=where.ssl,
        ssl_check_hostname=where.ssl_check_hostname,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 1),
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=names.queue_name(settings.environment),
    )
    try:
        yield JobQueue(redis, settings)
    finally:
        await redis.aclose()
