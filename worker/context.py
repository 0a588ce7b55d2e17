"""The context of every job: opened at startup, closed at shutdown."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from core import names, telemetry
from core.resources import Resources, open_resources
from core.settings import Settings
from core.stalls import watched_loop
from worker.background import Background
from worker.building.runner import BuildRunner, sweep
from worker.importing.attempt import ImportRunner
from worker.importing.uploads import FIRST_REMOVAL_S, schedule_removal
from worker.reconcile import reconcile_forever

KEY = "k9"
_log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """One worker process."""

    resources: Resources
    runner: BuildRunner
    importer: ImportRunner
    background: Background


def context_of(ctx: dict[Any, Any]) -> WorkerContext:
    """The typed context in arq's dict."""
    context: WorkerContext = ctx[KEY]
    return context


@asynccontextmanager
async def open_context(
    settings: Settings, *, reconcile: bool = True
) -> AsyncIterator[WorkerContext]:
    """Opens resources, build slots and the reconciler; at the end what runs is released."""
    async with AsyncExitStack() as stack:
        stack.enter_context(watched_loop(settings.loop_probe_s, settings.loop_stall_s))
        resources = await stack.enter_async_context(open_resources(settings.patient()))
        background = Background()
        # The first round of the reconciler tells whether this release may work on the tables.
        runner = BuildRunner(resources, background, paused=reconcile)
        importer = ImportRunner(resources, runner.slot_freed, paused=reconcile)
        schedule_removal(resources, background, FIRST_REMOVAL_S)
        name = f"{socket.gethostname()}:{os.getpid()}"
        work_dir = settings.building.work_dir  # earlier releases used it without the environment
        own_dir = names.directory_of(work_dir, settings.environment)
        swept = await asyncio.to_thread(sweep, own_dir, work_dir)
        rounds = asyncio.create_task(
            reconcile_forever(resources, runner, importer, background)
            if reconcile
            else asyncio.sleep(0)
        )
        _log.info("worker started", worker=name, environment=settings.environment, swept=swept)
        try:
            yield WorkerContext(resources, runner, importer, background)
        finally:
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
            await asyncio.gather(runner.close(), importer.close())
            await background.close()  # last: builds that ended just now have started work in it
            _log.info("worker stopped", worker=name)
