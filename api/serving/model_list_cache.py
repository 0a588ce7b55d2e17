"""The model versions as last listed, on this disk: for a start without DynamoDB."""

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from core import names, telemetry
from core.files import write_atomically
from core.models import Model
from core.settings import Settings

_FILE: Final = "current.json"

_log = telemetry.logger(__name__)


class ModelListCache:
    """A file, rewritten when something changes."""

    def __init__(self, settings: Settings) -> None:
        cache_dir = settings.serving.cache_dir
        self._path: Path = names.directory_of(cache_dir, settings.environment) / _FILE
        self._written = b""

    async def write(self, models: list[Model]) -> None:
        """Notes the model versions as they are now; a disk that does not take it is logged."""
        data = msgspec.json.encode(models)
        if data == self._written:
            return
        try:
            await asyncio.to_thread(write_atomically, self._path, data)
        except OSError as error:
            _log.warning("current builds not kept", error=str(error))
        else:
            self._written = data

    async def read(self) -> list[Model]:
        """What an earlier process noted; empty where that cannot be read."""
        try:
            data = await asyncio.to_thread(self._path.read_bytes)
            return msgspec.json.decode(data, type=list[Model])
        except (OSError, ValueError, RecursionError):
            return []
