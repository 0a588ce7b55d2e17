"""arq's settings of the worker: `python -m worker` runs it."""

from typing import Any

from arq.worker import Worker, func

from core import queue
from core.settings import Settings
from worker.context import shutdown, startup
from worker.jobs import build, delete

_GRACE_S = 60.0
_HEALTH_S = 10.0


def create_worker(settings: Settings, *, burst: bool = False, reconcile: bool = True) -> Worker:
    """A worker for these settings; `burst` ends it once the queue is empty.

    No result is kept: a kept one blocks its job id. The builds table has the outcome.
    """
    ctx: dict[str, Any] = {"settings": settings, "reconcile": reconcile}
    timeout_s = settings.building.build_timeout_s + _GRACE_S
    return Worker(
        functions=[
            func(build, name=queue.BUILD_JOB, timeout=timeout_s, keep_result=0),
            func(delete, name=queue.DELETION_JOB, timeout=timeout_s, keep_result=0),
        ],
        ctx=ctx,
        queue_name=queue.QUEUE,
        redis_settings=queue.redis_settings(settings),
        job_serializer=queue.serialize,
        job_deserializer=queue.deserialize,
        on_startup=startup,
        on_shutdown=shutdown,
        max_jobs=settings.building.jobs_max,
        keep_result=0,
        health_check_interval=_HEALTH_S,
        poll_delay=0.2,
        retry_jobs=False,  # the reconciler enqueues again what the table shows open
        burst=burst,
        handle_signals=not burst,
        log_results=False,
    )
