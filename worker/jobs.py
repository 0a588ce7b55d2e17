"""The jobs: thin, and short. Each hands over what it was told of, and the queue may forget it."""

from typing import Any

import msgspec

from core.queue import BuildJob, DeletionJob
from worker.context import context_of
from worker.reconcile import begin_deletion


async def build(ctx: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Claims one build, if it may be claimed, and begins with it."""
    job = msgspec.convert(payload, BuildJob)
    await context_of(ctx).workshop.take(job)


async def delete(ctx: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Begins to remove a user who is marked for it, and all their reports."""
    job = msgspec.convert(payload, DeletionJob)
    context = context_of(ctx)
    begin_deletion(context.resources, context.background, job.user_id)
