"""The jobs: each starts its work and returns, so that the queue can forget it."""

from typing import Any

import msgspec

from core.queue import BuildJob, DeletionJob, ImportJob
from worker.context import context_of
from worker.reconcile import start_user_deletion


async def build(ctx: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Claims a build, if it can be claimed, and starts it."""
    job = msgspec.convert(payload, BuildJob)
    await context_of(ctx).runner.start(job)


async def run_import(ctx: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Claims an import, if it can be claimed, and starts it."""
    job = msgspec.convert(payload, ImportJob)
    await context_of(ctx).importer.start(job)


async def delete(ctx: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Starts the deletion of a marked user and all their reports."""
    job = msgspec.convert(payload, DeletionJob)
    context = context_of(ctx)
    start_user_deletion(context.resources, context.background, job.user_id)
