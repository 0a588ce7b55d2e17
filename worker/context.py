"""What every job gets: typed, opened at startup, closed at shutdown."""

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from core import telemetry
from core.resources import Resources, open_resources
from core.settings import Settings
from worker.reconcile import reconcile_forever

_KEY = "k9"
_log = telemetry.logger(__name__)


@dataclass(slots=True)
class WorkerContext:
    """One worker process."""

    resources: Resources
    name: str
    """Host and process id: for people who read logs, never for decisions."""
    stack: AsyncExitStack
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)


def context_of(ctx: dict[Any, Any]) -> WorkerContext:
    """The typed context in arq's dict."""
    context: WorkerContext = ctx[_KEY]
    return context


async def startup(ctx: dict[Any, Any]) -> None:
    """Opens the resources and starts the reconciler."""
    settings: Settings = ctx["settings"]
    stack = AsyncExitStack()
    resources = await stack.enter_async_context(open_resources(settings))
    context = WorkerContext(resources, f"{socket.gethostname()}:{os.getpid()}", stack)
    if ctx.get("reconcile", True):
        context.tasks.append(asyncio.create_task(reconcile_forever(resources)))
    ctx[_KEY] = context
    _log.info("worker started", worker=context.name, environment=settings.environment)


async def shutdown(ctx: dict[Any, Any]) -> None:
    """Stops the reconciler and closes the resources."""
    context = context_of(ctx)
    for task in context.tasks:
        task.cancel()
    await asyncio.gather(*context.tasks, return_exceptions=True)
    await context.stack.aclose()
    _log.info("worker stopped", worker=context.name)
