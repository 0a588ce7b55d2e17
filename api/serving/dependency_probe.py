"""Whether Redis and S3 answer: neither is used until there is something to do."""

import asyncio
from collections.abc import Mapping
from typing import Final

from api.health import Health
from core.resources import Resources
from core.versions import VersionRecord

_WATCH_S: Final = 10.0
"""How often the parts are asked that searches can do without."""
_ASK_S: Final = 5.0


class DependencyProbe:
    """Asks now and then, lest a part that is away is first missed when it is needed."""

    def __init__(
        self, resources: Resources, health: Health, records: Mapping[str, VersionRecord]
    ) -> None:
        """`records` says what is current, by model version, and changes with it."""
        self._resources = resources
        self._health = health
        self._records = records

    async def run(self) -> None:
        """Notes whether Redis and S3 answer, until cancelled."""
        while True:
            await asyncio.gather(self._ask_redis(), self._ask_s3())
            await asyncio.sleep(_WATCH_S)

    async def _ask_redis(self) -> None:
        if await self._resources.queue.ping():
            self._health.ok("redis")
        else:
            self._health.failing("redis", "no answer")

    async def _ask_s3(self) -> None:
        """By the manifest of a current build, whether or not it is there."""
        record = next(iter(self._records.values()), None)
        if record is None:
            return
        try:
            async with asyncio.timeout(_ASK_S):
                await self._resources.versions.is_there(record)
        except Exception as error:  # noqa: BLE001 - whatever it is, S3 did not do its part
            self._health.failing("s3", type(error).__name__)
        else:
            self._health.ok("s3")
