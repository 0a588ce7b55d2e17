"""Opens what answers searches, with the tasks that keep it current."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from api import metrics
from api.health import Health
from api.serving.background import running
from api.serving.probes import Probes
from api.serving.registry import IndexRegistry
from api.serving.updater import IndexUpdater
from core.notifications import ChangeNotifier
from core.resources import Resources

_SPREAD_S: Final = 1.0
"""All processes hear again at the same moment, and poll the shards within this time."""


@asynccontextmanager
async def open_registry(resources: Resources, health: Health) -> AsyncIterator[IndexRegistry]:
    """The registry, kept current until the end of the block."""
    registry = IndexRegistry(resources)
    updater = IndexUpdater(resources, registry, health)
    probes = Probes(resources, registry, health, updater.records)

    async def listening() -> None:
        await listen(resources.notifier, registry)

    try:
        async with running(
            updater.run, listening, probes.ask_dependencies, probes.replace_foreign_versions
        ):
            yield registry
    finally:
        await registry.aclose()


async def listen(notifier: ChangeNotifier, registry: IndexRegistry) -> None:
    """Passes change notifications on to the replicas, until cancelled."""
    async for change in notifier.subscribe():
        if change is None:  # some may have been missed
            metrics.NOTIFICATIONS_BEGUN.inc()
            loop = asyncio.get_running_loop()
            for replica in registry.replicas.values():
                loop.call_later(random.uniform(0, _SPREAD_S), replica.poll_soon)  # noqa: S311 - spread
        elif change.model_version in registry.replicas:
            registry.replicas[change.model_version].notify(change)
