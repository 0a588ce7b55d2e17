"""What is loaded: model version → index. A swap is one assignment; nothing waits for it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from api import metrics
from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core import telemetry
from core.errors import K9Error, NoIndex, NotYetVisible, Unavailable
from core.identifiers import validate_model_version
from core.models import Model, Watermark
from core.repositories.models import ModelRepository

Bring = Callable[[str, Watermark], Awaitable[bool]]

VISIBLE_WAIT_S: Final = 1.0
"""How long a search waits for what its `min_watermark` asks."""


class IndexRegistry:
    """The loaded versions, and the model versions as last listed."""

    def __init__(self, models: ModelRepository, bytes_max: int) -> None:
        self._models = models
        self._bytes_max = bytes_max
        self._loaded: dict[str, Segment] = {}
        self._views: dict[str, Snapshot] = {}
        self._beside: dict[str, int] = {}
        """Bytes of what changed since the builds."""
        self.bring: Bring | None = None
        """Has a write applied, where changes are followed."""
        self.forget: Callable[[str], None] | None = None
        """Ends following a model version, where changes are followed."""
        self._marked: dict[str, Model] = {}
        """Model versions that this process marked for deletion: lists may lag behind that."""
        self._swapped = asyncio.Event()
        self.known: dict[str, Model] = {}
        """Model versions as DynamoDB last listed them, or as the cache has them."""
        self.troubles: dict[str, str] = {}
        """Model version → why its current build is not in use; empty where all are."""

    @property
    def loaded(self) -> dict[str, Segment]:
        """What answers now; not to be changed."""
        return self._loaded

    def view(self, model_version: str) -> Snapshot | None:
        """What answers for a model version now; None where nothing is loaded."""
        return self._views.get(model_version)

    async def wanted(self, model_version: str, after: Watermark | None = None) -> Snapshot:
        """What answers for a model version.

        A request keeps it to its end, whatever changes meanwhile.

        Args:
            model_version: As the caller wrote it.
            after: A write that it must reflect, which is waited for a short time.

        Raises:
            Invalid: it is no name of a model version.
            NotFound: there is no such model version.
            ModelBeingDeleted: it is marked for deletion.
            NoIndex: it has no published build.
            NotYetVisible: it did not reflect `after` in time.
            Unavailable: its index is not loaded yet.
        """
        view = self._views.get(model_version)
        if view is None:
            raise await self._absence(model_version)
        if after is None or view.reflects(after):
            return view
        if after.generation is not None and after.generation < view.segment.generation:
            raise NotYetVisible(
                f"this write was to an earlier {model_version}, which was deleted since"
            )
        return await self._awaited(model_version, after)

    def swap(self, loaded: Segment, view: Snapshot | None = None) -> None:
        """Puts an index to use, in place of the one before it.

        Raises:
            Unavailable: it does not fit the memory budget beside the others.
        """
        left = self._left(loaded.model_version)
        if loaded.resident_bytes > left:
            raise Unavailable(
                f"{loaded.build_id} takes {loaded.resident_bytes} bytes of memory, and "
                f"{left} are left of K9_LOADED_BYTES_MAX",
                public="the index does not fit into the memory that is left",
            )
        self._views[loaded.model_version] = view or Snapshot(loaded)
        self._loaded[loaded.model_version] = loaded
        metrics.SWAPS.labels(loaded.model_version).inc()
        telemetry.LOADED_ROWS.labels(loaded.model_version).set(loaded.rows)
        self._swapped.set()
        self._swapped = asyncio.Event()

    def show(self, view: Snapshot, beside_bytes: int) -> None:
        """Answers from a newer view of the index that is in use; of another one, it is dropped."""
        if self._loaded.get(view.model_version) is view.segment:
            self._views[view.model_version] = view
            self._beside[view.model_version] = beside_bytes

    def has_room(self, model_version: str, beside_bytes: int) -> bool:
        """Whether the budget has room for so many bytes beside the index that is in use."""
        loaded = self._loaded.get(model_version)
        index_bytes = loaded.resident_bytes if loaded else 0
        return index_bytes + beside_bytes <= self._left(model_version)

    def _left(self, model_version: str) -> int:
        """What the other model versions leave of the budget."""
        others = sum(
            loaded.resident_bytes + self._beside.get(name, 0)
            for name, loaded in self._loaded.items()
            if name != model_version
        )
        return self._bytes_max - others

    def drop(self, model_version: str) -> None:
        """Forgets the index of a model version; requests that have it finish with it."""
        self._views.pop(model_version, None)
        self._beside.pop(model_version, None)
        if self.forget is not None:
            self.forget(model_version)
        if self._loaded.pop(model_version, None) is not None:
            telemetry.LOADED_ROWS.remove(model_version)

    def learn(self, models: Iterable[Model]) -> None:
        """Takes the list of model versions as it is now."""
        self.known = {model.model_version: model for model in models}
        for name, marked in list(self._marked.items()):
            listed = self.known.get(name)
            if listed is None or listed.deleting_at or listed.data != marked.data:
                del self._marked[name]
            else:
                self.known[name] = marked

    def mark(self, marked: Model) -> None:
        """Answers no more for a model version that was just marked for deletion."""
        self._marked[marked.model_version] = marked
        self.known = {**self.known, marked.model_version: marked}
        self.drop(marked.model_version)

    async def _awaited(self, model_version: str, after: Watermark) -> Snapshot:
        """A view that reflects the write: by reading what was written, or by a newer index."""
        until = asyncio.get_running_loop().time() + VISIBLE_WAIT_S
        brought = asyncio.create_task(self._brought(model_version, after))
        try:
            while (view := self._views.get(model_version)) is not None:
                same = after.generation in {None, view.segment.generation}
                if view.reflects(after) or (same and brought.done() and brought.result()):
                    return view
                swapping = asyncio.create_task(self._swapped.wait())
                waiting = {swapping} if brought.done() else {swapping, brought}
                left_s = until - asyncio.get_running_loop().time()
                done, _ = await asyncio.wait(
                    waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                swapping.cancel()
                if not done:
                    break
        finally:
            brought.cancel()
        raise NotYetVisible(
            f"the index of {model_version} does not reflect this write yet; try again later"
        )

    async def _brought(self, model_version: str, after: Watermark) -> bool:
        return self.bring is not None and await self.bring(model_version, after)

    async def _absence(self, model_version: str) -> K9Error:
        """Why nothing is loaded for it. On doubt the model version itself is read."""
        validate_model_version(model_version)
        model = self.known.get(model_version)
        if model is None or model.deleting_at is not None:  # which may be done by now
            model = await self._models.get_model(model_version)
        if model.current_build_id is None:
            return NoIndex(f"{model_version} has no published build yet; POST one to its builds")
        trouble = self.troubles.get(model_version, "it is being loaded")
        return Unavailable(f"the index of {model_version} is not in use yet: {trouble}")
