"""Removes versions that are no longer kept, and tombstones that no version needs any more."""

import asyncio
from collections.abc import Mapping
from functools import partial

from core import telemetry
from core.errors import K9Error, Unavailable
from core.resources import Resources
from worker.background import Background
from worker.retention import apply_retention

_TIMEOUT_S = 120.0
"""What is not removed by then is left to the next round."""
_PAUSE_MIN_S = 1.0
"""Between two rounds, however short the grace time is."""

_log = telemetry.logger(__name__)


class GarbageCollector:
    """Collects the garbage of model versions in the background, occupying no build slot."""

    def __init__(self, resources: Resources, background: Background) -> None:
        self._resources = resources
        self._background = background
        self._pause_s = max(resources.settings.building.version_grace_s, _PAUSE_MIN_S)
        self._requested: dict[str, Mapping[str, str]] = {}

    def request(self, model_version: str, tombstones: Mapping[str, str]) -> None:
        """Collects now, and again after each grace time until no version waits for its end.

        Tombstones are product ids with the time of their deletion. Only those of the last request
        are remembered: they include the earlier ones.
        """
        self._requested[model_version] = tombstones
        if not self._background.start(_name(model_version), partial(self._rounds, model_version)):
            self._schedule(model_version)  # in case the running round ends without seeing this

    def _schedule(self, model_version: str) -> None:
        work = partial(self._rounds, model_version)
        self._background.later(_name(model_version), self._pause_s, work)

    async def _rounds(self, model_version: str) -> None:
        while True:
            tombstones = self._requested.pop(model_version, {})
            if await collect(self._resources, model_version, tombstones):
                self._schedule(model_version)
            if model_version not in self._requested:
                return  # else another build was published meanwhile


def _name(model_version: str) -> str:
    return f"collect-garbage/{model_version}"


async def collect(resources: Resources, model_version: str, tombstones: Mapping[str, str]) -> bool:
    """Removes what can be removed now; True when another round is needed.

    Errors are logged, not raised: the next round continues from there.
    """
    log = _log.bind(model_version=model_version)
    again = False
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            result = await apply_retention(resources, model_version)
            again = result.retired
            watermark = result.watermark or ""
            old = {product_id: at for product_id, at in tombstones.items() if at < watermark}
            removed = await resources.embeddings.remove_tombstones(model_version, old)
    except (K9Error, TimeoutError) as error:
        again = again or isinstance(error, Unavailable | TimeoutError)
        log.warning("garbage not collected", reason=str(error) or type(error).__name__)
    except Exception:
        log.exception("unexpected error in garbage collection")
    else:
        if removed:
            log.info("tombstones removed", tombstones=removed)
    return again
