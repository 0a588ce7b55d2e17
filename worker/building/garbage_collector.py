"""After a publish: versions that are kept no longer go, and tombstones that no version needs."""

import asyncio
from collections.abc import Iterable

from core import telemetry
from core.errors import K9Error, Unavailable
from core.repositories.tombstones import Tombstone
from core.resources import Resources
from worker.background import Background

_LIMIT_S = 120.0
"""What is not done by then is left for another round."""
_PAUSE_MIN_S = 1.0
"""Between two rounds, however short the grace time is."""

_log = telemetry.logger(__name__)


class Tidying:
    """Rounds over the model versions that were published, in the background: no slot waits."""

    def __init__(self, resources: Resources, background: Background) -> None:
        self._resources = resources
        self._background = background
        self._pause_s = max(resources.settings.building.version_grace_s, _PAUSE_MIN_S)
        self._asked: dict[str, tuple[Tombstone, ...]] = {}

    def ask(self, model_version: str, tombstones: tuple[Tombstone, ...] = ()) -> None:
        """Tidies up now, and again after each grace time until nothing waits for the end of its.

        Only the tombstones that were met last are remembered: they hold the earlier ones.
        """
        self._asked[model_version] = tombstones
        if not self._background.start(_name(model_version), lambda: self._round(model_version)):
            self._again(model_version)  # a round under way sees to it, unless it ends early

    def _again(self, model_version: str) -> None:
        self._background.later(
            _name(model_version), self._pause_s, lambda: self._round(model_version)
        )

    async def _round(self, model_version: str) -> None:
        while True:
            tombstones = self._asked.pop(model_version, ())
            if await tidy(self._resources, model_version, tombstones):
                self._again(model_version)
            if model_version not in self._asked:
                return  # else another build was published meanwhile


def _name(model_version: str) -> str:
    return f"tidy/{model_version}"


async def tidy(
    resources: Resources, model_version: str, tombstones: Iterable[Tombstone] = ()
) -> bool:
    """Removes what can go now; True where something is left, for the end of its grace time say.

    Nothing depends on it: whatever fails is logged, and the next round goes on from there.
    """
    log = _log.bind(model_version=model_version)
    left = False
    try:
        async with asyncio.timeout(_LIMIT_S):
            kept = await resources.retention.apply(model_version)
            left = kept.retired
            watermark = kept.watermark or ""
            old = [tombstone for tombstone in tombstones if tombstone.deleted_at < watermark]
            removed = await resources.tombstones.remove(model_version, old)
    except (K9Error, TimeoutError) as error:
        left = left or isinstance(error, Unavailable | TimeoutError)
        log.warning("not all tidied up", reason=str(error) or type(error).__name__)
    except Exception:
        log.exception("tidying up broke")
    else:
        if removed:
            log.info("tombstones removed", tombstones=removed)
    return left
