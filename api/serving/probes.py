"""What is asked of Redis and S3 now and then, lest what is away is first missed when it is needed.

A current version's files may be another environment's, as after its tables were copied. That
environment removes them when its own rules say so. Then a build is requested here, whose files are
this environment's own.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from api.health import Health
from api.serving.registry import IndexRegistry
from core import names
from core.errors import Unavailable
from core.models import Model
from core.resources import Resources
from core.versions import VersionRecord

_INTERVAL_S: Final = 10.0
_ASK_S: Final = 5.0


class Probes:
    """Asks whether Redis and S3 answer, and whether S3 has the files that it must have."""

    def __init__(
        self,
        resources: Resources,
        registry: IndexRegistry,
        health: Health,
        records: Mapping[str, VersionRecord],
    ) -> None:
        """`records` says what is current, by model version, and changes with it."""
        self._resources = resources
        self._registry = registry
        self._health = health
        self._records = records

    async def ask_dependencies(self) -> None:
        """Notes whether Redis and S3 answer, until cancelled."""
        while True:
            await asyncio.gather(self._ask_redis(), self._ask_s3())
            await asyncio.sleep(_INTERVAL_S)

    async def replace_foreign_versions(self) -> None:
        """Requests builds for what another environment removed, until cancelled."""
        while True:
            for name, record in list(self._records.items()):
                model = self._registry.known.get(name)
                if model is not None and await self._is_gone(model, record):
                    reason = "files of another environment are gone"
                    self._registry.builds.request(model, reason)
            await asyncio.sleep(_INTERVAL_S)

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

    async def _is_gone(self, model: Model, record: VersionRecord) -> bool:
        """Whether the current version is another environment's, and its files are not there."""
        settings = self._resources.settings
        if (
            names.owns(settings.environment, settings.aws.bucket, record.prefix)
            or model.current_build_id != record.build_id
            or model.open_build_id is not None
        ):
            return False
        try:
            return not await self._resources.versions.is_there(record)
        except Unavailable:  # nothing is known of them; readiness tells of S3
            return False
