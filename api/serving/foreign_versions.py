"""Current versions whose files are another environment's, as after its tables were copied.

That environment removes them when its own rules say so. Then a build is requested here, whose files
are this environment's own.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from api.serving.registry import IndexRegistry
from core import names, telemetry
from core.errors import K9Error, Unavailable
from core.resources import Resources
from core.versions import VersionRecord

_WATCH_S: Final = 10.0
_AGAIN_S: Final = 600.0
"""Before another build is requested where none came of the one before."""

_log = telemetry.logger(__name__)


class ForeignVersionWatch:
    """Watches the files that this environment serves from and does not own."""

    def __init__(
        self, resources: Resources, registry: IndexRegistry, records: Mapping[str, VersionRecord]
    ) -> None:
        """`records` says what is current, by model version, and changes with it."""
        self._resources = resources
        self._registry = registry
        self._records = records
        self._not_before: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for name, record in list(self._records.items()):
                if self._is_borrowed(name, record):
                    await self._replace_if_gone(name, record)
            await asyncio.sleep(_WATCH_S)

    def _is_borrowed(self, name: str, record: VersionRecord) -> bool:
        settings = self._resources.settings
        if names.owns(settings.environment, settings.aws.bucket, record.prefix):
            return False
        model = self._registry.known.get(name)
        return (
            model is not None
            and model.current_build_id == record.build_id
            and model.open_build_id is None
        )

    async def _replace_if_gone(self, name: str, record: VersionRecord) -> None:
        now = asyncio.get_running_loop().time()
        log = _log.bind(model_version=name, build_id=record.build_id)
        try:
            if now < self._not_before.get(name, now) or await self._is_there(record):
                return
            self._not_before[name] = now + _AGAIN_S
            build = await self._resources.build_service.request_automatic(name)
        except K9Error as error:
            log.warning("files of another environment are not replaced", reason=str(error))
        except Exception:
            log.exception("watching files of another environment broke")
        else:
            log.warning(
                "files of another environment are gone: a build is requested",
                requested_build_id=build.build_id,
            )

    async def _is_there(self, record: VersionRecord) -> bool:
        try:
            return await self._resources.versions.is_there(record)
        except Unavailable:  # nothing is known of them; readiness tells of S3
            return True
