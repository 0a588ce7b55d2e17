"""What this process serves: a replica of each model version with a loaded index."""

import asyncio
import random
from collections.abc import Iterable
from typing import Final

from api import metrics
from api.serving.automatic_builds import AutomaticBuilds
from api.serving.replica import ModelReplica
from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core.errors import K9Error, NoIndex, Unavailable
from core.identifiers import validate_model_version
from core.models import Model, Watermark
from core.resources import Resources

_SPREAD_S: Final = 1.0
"""All processes hear again at the same moment, and poll the shards within this time."""


class IndexRegistry:
    """The loaded model versions, and all of them as last listed."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.builds = AutomaticBuilds(resources)
        self._bytes_max = resources.settings.serving.loaded_bytes_max
        self._marked: dict[str, Model] = {}
        """Model versions that this process marked for deletion: lists may lag behind that."""
        self._closing: set[asyncio.Task[None]] = set()
        self.replicas: dict[str, ModelReplica] = {}
        self.known: dict[str, Model] = {}
        """Model versions as DynamoDB last listed them, or as the cache has them."""
        self.troubles: dict[str, str] = {}
        """Model version → why its current build is not in use; empty where all are."""

    @property
    def loaded(self) -> dict[str, Segment]:
        """The segments that answer now."""
        return {
            name: replica.snapshot.segment
            for name, replica in self.replicas.items()
            if replica.snapshot is not None
        }

    def segment(self, model_version: str) -> Segment | None:
        """The segment that answers for a model version; None where none is loaded."""
        snapshot = self.current(model_version)
        return None if snapshot is None else snapshot.segment

    def current(self, model_version: str) -> Snapshot | None:
        """What answers for a model version now; None where nothing is loaded."""
        replica = self.replicas.get(model_version)
        return None if replica is None else replica.snapshot

    async def snapshot(self, model_version: str, after: Watermark | None = None) -> Snapshot:
        """What answers for a model version. A request keeps it to its end.

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
        replica = self.replicas.get(model_version)
        if replica is None or replica.snapshot is None:
            raise await self._absence(model_version)
        if after is None or replica.snapshot.reflects(after):
            return replica.snapshot
        return await replica.reflecting(after)

    async def activate(self, model: Model, segment: Segment) -> None:
        """Puts a loaded segment to use; see `ModelReplica.activate`."""
        name = model.model_version
        replica = self.replicas.get(name)
        if replica is None:
            replica = self.replicas[name] = ModelReplica(
                self._resources, model, self.builds, self._bytes_left
            )
        try:
            await replica.activate(segment)
        finally:
            if replica.snapshot is None and self.replicas.get(name) is replica:
                self.drop(name)

    def drop(self, model_version: str) -> None:
        """Unloads a model version; requests that have a snapshot of it finish with it."""
        replica = self.replicas.pop(model_version, None)
        if replica is not None:
            replica.close()
            task = asyncio.create_task(replica.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def learn(self, models: Iterable[Model]) -> None:
        """Takes the list of model versions as it is now, and drops those whose data is gone."""
        self.known = {model.model_version: model for model in models}
        for name, marked in list(self._marked.items()):
            listed = self.known.get(name)
            if listed is None or listed.deleting_at or listed.data != marked.data:
                del self._marked[name]
            else:
                self.known[name] = marked
        for name, replica in list(self.replicas.items()):
            model = self.known.get(name)
            if model is None or model.deleting_at or model.data != replica.model.data:
                self.drop(name)
            else:
                replica.model = model

    def mark(self, marked: Model) -> None:
        """Answers no more for a model version that was just marked for deletion."""
        self._marked[marked.model_version] = marked
        self.known = {**self.known, marked.model_version: marked}
        self.drop(marked.model_version)

    async def listen(self) -> None:
        """Passes change notifications on to the replicas, until cancelled."""
        async for change in self._resources.notifier.subscribe():
            if change is None:  # some may have been missed
                metrics.NOTIFICATIONS_BEGUN.inc()
                loop = asyncio.get_running_loop()
                for replica in self.replicas.values():
                    loop.call_later(random.uniform(0, _SPREAD_S), replica.poll_soon)  # noqa: S311 - spread
            elif change.model_version in self.replicas:
                self.replicas[change.model_version].notify(change)

    async def aclose(self) -> None:
        """Unloads everything."""
        for name in list(self.replicas):
            self.drop(name)
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.builds.aclose()

    def _bytes_left(self, model_version: str) -> int:
        """What the other model versions leave of the memory for indexes and their deltas."""
        others = (each.resident_bytes for each in self.replicas.values())
        own = self.replicas.get(model_version)
        return self._bytes_max - sum(others) + (own.resident_bytes if own else 0)

    async def _absence(self, model_version: str) -> K9Error:
        """Why nothing is loaded for it. On doubt the model version itself is read."""
        validate_model_version(model_version)
        model = self.known.get(model_version)
        if model is None or model.deleting_at is not None:  # which may be done by now
            model = await self._resources.models.get_model(model_version)
        if model.current_build_id is None:
            return NoIndex(f"{model_version} has no published build yet; POST one to its builds")
        trouble = self.troubles.get(model_version, "it is being loaded")
        return Unavailable(f"the index of {model_version} is not in use yet: {trouble}")
