"""What is loaded: model version → index. A swap is one assignment; nothing waits for it."""

import asyncio
from collections.abc import Iterable
from typing import Final

from api import telemetry as metrics
from api.serving.loaded import LoadedIndex
from core import telemetry
from core.errors import K9Error, NoIndex, NotYetVisible, Unavailable
from core.models import Model
from core.repositories.models import ModelRepository
from core.usecases.identifiers import validate_model_version
from core.watermarks import Watermark

VISIBLE_WAIT_S: Final = 1.0
"""How long a search waits for what its `min_watermark` asks."""


class Catalogue:
    """The loaded versions, and the model versions as last listed."""

    def __init__(self, models: ModelRepository, bytes_max: int) -> None:
        self._models = models
        self._bytes_max = bytes_max
        self._loaded: dict[str, LoadedIndex] = {}
        self._swapped = asyncio.Event()
        self.known: dict[str, Model] = {}
        """Model versions as DynamoDB last listed them, or as the cache has them."""

    @property
    def loaded(self) -> dict[str, LoadedIndex]:
        """What answers now; not to be changed."""
        return self._loaded

    async def wanted(self, model_version: str, after: Watermark | None = None) -> LoadedIndex:
        """The index that answers for a model version.

        A request keeps it to its end, whatever is swapped in meanwhile.

        Args:
            model_version: As the caller wrote it.
            after: What the index must reflect; it is waited for a short time.

        Raises:
            Invalid: it is no name of a model version.
            NotFound: there is no such model version.
            NoIndex: it has no published build.
            NotYetVisible: no index that reflects `after` came in time.
            Unavailable: its index is not loaded yet.
        """
        loaded = self._loaded.get(model_version)
        if loaded is None:
            raise await self._absence(model_version)
        if after is None or loaded.reflects(after):
            return loaded
        return await self._awaited(model_version, after)

    def swap(self, loaded: LoadedIndex) -> None:
        """Puts an index to use, in place of the one before it.

        Raises:
            Unavailable: it does not fit the memory budget beside the others.
        """
        others = sum(
            other.resident_bytes
            for model_version, other in self._loaded.items()
            if model_version != loaded.model_version
        )
        if others + loaded.resident_bytes > self._bytes_max:
            raise Unavailable(
                f"{loaded.build_id} takes {loaded.resident_bytes} bytes of memory, and "
                f"{self._bytes_max - others} are left of K9_LOADED_BYTES_MAX"
            )
        self._loaded[loaded.model_version] = loaded
        metrics.SWAPS.labels(loaded.model_version).inc()
        telemetry.LOADED_ROWS.labels(loaded.model_version).set(loaded.rows)
        self._swapped.set()
        self._swapped = asyncio.Event()

    def drop(self, model_version: str) -> None:
        """Forgets the index of a model version; requests that have it finish with it."""
        if self._loaded.pop(model_version, None) is not None:
            telemetry.LOADED_ROWS.remove(model_version)

    def learn(self, models: Iterable[Model]) -> None:
        """Takes the list of model versions as it is now."""
        self.known = {model.model_version: model for model in models}

    async def _awaited(self, model_version: str, after: Watermark) -> LoadedIndex:
        until = asyncio.get_running_loop().time() + VISIBLE_WAIT_S
        while True:
            swapped = self._swapped
            loaded = self._loaded.get(model_version)
            if loaded is not None and loaded.reflects(after):
                return loaded
            try:
                async with asyncio.timeout_at(until):
                    await swapped.wait()
            except TimeoutError:
                raise NotYetVisible(
                    f"the index of {model_version} does not reflect this write yet; "
                    "try again later, or build"
                ) from None

    async def _absence(self, model_version: str) -> K9Error:
        """Why nothing is loaded for it. On doubt the model version itself is read."""
        validate_model_version(model_version)
        model = self.known.get(model_version) or await self._models.get_model(model_version)
        if model.current_build_id is None:
            return NoIndex(f"{model_version} has no published build yet; POST one to its builds")
        return Unavailable(f"the index of {model_version} is being loaded")
