"""The jobs: thin. Decode, call one thing; what it raises was handled where it was understood."""

from typing import Any

import msgspec

from core.queue import BuildJob, DeletionJob
from worker.building.pipeline import run_build
from worker.context import context_of
from worker.deletion import delete_user


async def build(ctx: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Runs one build, if it may be claimed."""
    job = msgspec.convert(payload, BuildJob)
    await run_build(context_of(ctx).resources, job)


async def delete(ctx: dict[Any, Any], payload: dict[str, Any]) -> None:
    """Removes a user who is marked for it, and all their reports."""
    job = msgspec.convert(payload, DeletionJob)
    await delete_user(context_of(ctx).resources, job.user_id)
