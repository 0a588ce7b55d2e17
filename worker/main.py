"""The worker process: its context, and the queue's listener, which is replaced when it ends."""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from typing import Final

from arq.worker import Worker, func
from redis.exceptions import RedisError

from core import names, queue, telemetry
from core.metrics_log import logged_metrics
from core.retry import RetryPolicy
from core.settings import Settings
from core.stalls import freeze_memory
from worker.context import KEY, WorkerContext, context_of, open_context
from worker.jobs import build, delete, run_import
from worker.metrics import log_reader

_JOB_TIMEOUT_S = 10.0
"""A job claims a build or starts a deletion. If its worker is killed, arq keeps it from the others
for this time and 10 s more."""
_HEALTH_S = 10.0
_POLL_S = 0.2
_RECONNECT: Final = RetryPolicy(first_s=0.5, max_s=10.0, jitter=0.5)
_JOBS_MAX = 64

_log = telemetry.logger(__name__)


class Listener(Worker):
    """arq's worker, which accepts jobs only while a build slot is free."""

    async def _poll_iteration(self) -> None:
        free = context_of(self.ctx).runner.free_slots
        self.max_jobs = min(free, _JOBS_MAX)
        self.allow_pick_jobs = free > 0
        await super()._poll_iteration()


def create_listener(settings: Settings, context: WorkerContext, *, burst: bool = False) -> Listener:
    """A listener whose jobs use the context; in `burst` mode it ends once the queue is empty.

    Results are not kept, because a kept one blocks its job id: the builds table has the outcome.
    """
    return Listener(
        functions=[
            func(build, name=queue.BUILD_JOB),
            func(run_import, name=queue.IMPORT_JOB),
            func(delete, name=queue.DELETION_JOB),
        ],
        ctx={KEY: context},
        queue_name=names.queue_name(settings.environment),
        redis_settings=queue.redis_settings(settings),
        job_serializer=queue.serialize,
        job_deserializer=queue.deserialize,
        max_jobs=_JOBS_MAX,
        job_timeout=_JOB_TIMEOUT_S,
        keep_result=0,
        health_check_interval=_HEALTH_S,
        poll_delay=_POLL_S,
        retry_jobs=False,  # the reconciler enqueues open builds again
        burst=burst,
        handle_signals=False,
        log_results=False,
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Works until `stop` is set, then releases its builds.

    The listener ends with its connection to Redis and is replaced; builds go on.
    """
    async with AsyncExitStack() as stack:
        port = settings.building.worker_metrics_port
        stack.enter_context(telemetry.metrics_server(settings.http.host, port))
        context = await stack.enter_async_context(open_context(settings))
        await stack.enter_async_context(logged_metrics(settings.metrics_log_s, log_reader()))
        freeze_memory()
        stopping = asyncio.create_task(stop.wait())
        failures = 0
        while not stop.is_set():
            listener = create_listener(settings, context)
            began = asyncio.get_running_loop().time()
            listening = asyncio.create_task(listener.async_run())
            await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                _log.warning("queue connection lost", error=repr(listening.exception()))
            await _close(listener, listening)
            lasted = asyncio.get_running_loop().time() - began
            failures = 1 if lasted > _RECONNECT.max_s else failures + 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECONNECT.delay_s(failures)):
                    await stop.wait()
        stopping.cancel()


async def _close(listener: Listener, listening: "asyncio.Task[None]") -> None:
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    with contextlib.suppress(RedisError, OSError, TimeoutError, asyncio.CancelledError):
        await listener.close()
