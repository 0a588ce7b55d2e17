"""Changes since the builds: which rows changed is heard from hints, and each model is followed."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from api import metrics
from api.serving.registry import IndexRegistry
from api.serving.replica import ModelReplica
from api.serving.segment import Segment
from core import telemetry
from core.models import Model, Watermark
from core.resources import Resources

_SPREAD_S: Final = 1.0
"""Once hints are heard again, all processes look at their shards, within this time."""
_AGAIN_S: Final = 5.0

_log = telemetry.logger(__name__)


class Freshness:
    """The followers of all model versions that are loaded."""

    def __init__(self, resources: Resources, registry: IndexRegistry) -> None:
        self._resources = resources
        self._registry = registry
        self._followers: dict[str, ModelReplica] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def adopt(self, model: Model, index: Segment) -> None:
        """Puts a loaded version to use, with what changed since; see `ModelReplica.adopt`."""
        follower = self._followers.get(model.model_version)
        if follower is None:
            follower = ModelReplica(self._resources, self._registry, model)
            self._followers[model.model_version] = follower
        await follower.adopt(index)

    def forget(self, model_version: str) -> None:
        """Stops following a model version, whose index was dropped."""
        follower = self._followers.pop(model_version, None)
        if follower is not None:
            follower.close()
            task = asyncio.create_task(follower.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def bring(self, model_version: str, after: Watermark) -> bool:
        """Has a write applied; False where that cannot be. See `ModelReplica.bring`."""
        follower = self._followers.get(model_version)
        return follower is not None and await follower.bring(after)

    async def run(self) -> None:
        """Passes hints on until cancelled."""
        while True:
            try:
                await self._pass_on()
            except Exception as error:  # noqa: BLE001 - a mistake of ours must not end the hearing
                _log.error("hearing hints broke", exc_info=error)
            await asyncio.sleep(_AGAIN_S)

    async def _pass_on(self) -> None:
        async for hint in self._resources.notifier.subscribe():
            if hint is None:
                metrics.HINTS_BEGUN.inc()
                self._look_all()
            else:
                follower = self._followers.get(hint.model_version)
                if follower is not None:
                    follower.hinted(hint)

    def _look_all(self) -> None:
        """Has every model version looked through: hints may have been missed."""
        loop = asyncio.get_running_loop()
        for follower in self._followers.values():
            loop.call_later(random.uniform(0, _SPREAD_S), follower.look_soon)  # noqa: S311 - spread

    async def aclose(self) -> None:
        """Stops following anything."""
        for model_version in list(self._followers):
            self.forget(model_version)
        await asyncio.gather(*self._closing, return_exceptions=True)


@asynccontextmanager
async def open_freshness(resources: Resources, registry: IndexRegistry) -> AsyncIterator[Freshness]:
    """Follows changes until the end of the block."""
    freshness = Freshness(resources, registry)
    registry.bring = freshness.bring
    registry.forget = freshness.forget
    hearing = asyncio.create_task(freshness.run())
    try:
        yield freshness
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        await freshness.aclose()
