"""Current versions whose files are another environment's, as after its tables were copied.

That environment removes them when its own rules say so. Then a build is requested here, whose files
are this environment's own.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

from api.serving.registry import IndexRegistry
from core import names
from core.errors import Unavailable
from core.models import Model
from core.resources import Resources
from core.versions import VersionRecord

_WATCH_S: Final = 10.0


class ForeignVersionWatch:
    """Watches the files that this environment serves from and does not own."""

    def __init__(
        self, resources: Resources, registry: IndexRegistry, records: Mapping[str, VersionRecord]
    ) -> None:
        """`records` says what is current, by model version, and changes with it."""
        self._settings = resources.settings
        self._versions = resources.versions
        self._registry = registry
        self._records = records

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for name, record in list(self._records.items()):
                model = self._registry.known.get(name)
                if model is not None and await self._is_gone(model, record):
                    reason = "files of another environment are gone"
                    self._registry.builds.request(model, reason)
            await asyncio.sleep(_WATCH_S)

    async def _is_gone(self, model: Model, record: VersionRecord) -> bool:
        """Whether the current version is another environment's, and its files are not there."""
        settings = self._settings
        if (
            names.owns(settings.environment, settings.aws.bucket, record.prefix)
            or model.current_build_id != record.build_id
            or model.open_build_id is not None
        ):
            return False
        try:
            return not await self._versions.is_there(record)
        except Unavailable:  # nothing is known of them; readiness tells of S3
            return False
