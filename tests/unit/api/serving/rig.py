"""A registry and an updater over fakes that a test holds in its hands, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from api.health import Health
from api.serving.background import cancelled, running
from api.serving.registry import IndexRegistry
from api.serving.segment import Hits, Segment
from api.serving.snapshot import Snapshot
from api.serving.updater import IndexUpdater
from core.models import timestamp
from core.settings import Serving, Settings
from core.vectors.arrays import Floats
from tests.unit.api.serving.fakes import (
    FakeAttributes,
    FakeBuilds,
    FakeBuildService,
    FakeModels,
    FakeNotifier,
    FakeRows,
    FakeVersions,
    resources_of,
)
from tests.unit.api.serving.versions import DIMENSION, model_of
from tests.virtual_time import virtual_now

IDS: Final = ("a", "b", "c", "d", "e", "f")


def ago(seconds: float) -> str:
    """A moment so long before now."""
    return timestamp(virtual_now() - timedelta(seconds=seconds))


def vector(seed: int) -> Floats:
    """A vector, the same for the same seed."""
    made: Floats = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return made


class Rig:
    """Serving of the model version `m`."""

    def __init__(self, root: Path, *, bytes_max: int = 1 << 30, **serving: Any) -> None:
        self.rows = FakeRows()
        self.attributes = FakeAttributes()
        self.models = FakeModels()
        self.builds = FakeBuilds(self.models)
        self.requests = FakeBuildService()
        self.notifier = FakeNotifier()
        self.versions = FakeVersions(root / "versions")
        self.health = Health()
        chosen = {"poll_s": 600.0, "refresh_s": 1.0, "cache_dir": root / "cache", **serving}
        resources = resources_of(
            Settings(serving=Serving(loaded_bytes_max=bytes_max, **chosen)),
            models=self.models,
            embeddings=self.rows,
            attributes=self.attributes,
            builds=self.builds,
            build_service=self.requests,
            notifier=self.notifier,
            versions=self.versions,
        )
        self.registry = IndexRegistry(resources)
        self.updater = IndexUpdater(resources, self.registry, self.health)

    @asynccontextmanager
    async def updating(self) -> AsyncIterator[None]:
        """With the updater at work, and notifications heard."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("api.serving.replica.now", virtual_now)
            try:
                async with running(self.updater.run, self.registry.listen):
                    yield
            finally:
                await self.registry.aclose()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """With the first build, `b-1`, in use, no updater, and notifications heard."""
        self.models.models = [model_of("b-1")]
        self.registry.learn(self.models.models)
        listening = asyncio.create_task(self.registry.listen())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("api.serving.replica.now", virtual_now)
            try:
                await self.activate("b-1")
                yield
            finally:
                await cancelled(listening)
                await self.registry.aclose()

    async def activate(self, build_id: str, ids: Sequence[str] = IDS) -> None:
        """Puts a build of these products, as they were an hour ago, to use."""
        if build_id not in self.versions.manifests:
            rows = np.stack([vector(ord(name)) for name in ids])
            self.versions.add(build_id, ids, rows=rows, watermark=ago(3600))
        directory = self.versions.root / build_id / "out"
        model = model_of(build_id)
        segment = Segment.open(directory, self.versions.manifests[build_id], model)
        await self.registry.activate(model, segment)

    def put(self, product_id: str, row: Floats | None, moment: str = "") -> str:
        """Writes a row, or deletes it; when that was."""
        moment = moment or ago(0)
        self.rows.put(product_id, row, moment)
        return moment

    @property
    def segment(self) -> Segment | None:
        """The segment that answers."""
        return self.registry.segment("m")

    @property
    def build_id(self) -> str | None:
        """The build that answers."""
        return None if self.segment is None else self.segment.build_id

    @property
    def snapshot(self) -> Snapshot:
        """What answers."""
        snapshot = self.registry.current("m")
        assert snapshot is not None
        return snapshot

    @property
    def fresh(self) -> int | None:
        """What answers say of what changed."""
        return self.snapshot.provenance.fresh

    def has(self, product_id: str) -> bool:
        """Whether a product is known."""
        return self.snapshot.find(product_id) is not None

    def found(self, row: Floats, k: int = 100, *, exact: bool = False) -> Hits:
        """A search."""
        return self.snapshot.search([row], k, exact=exact)[0]

    async def polled(self, count: int = 1) -> None:
        """Waits until so many polls ended, and what they showed is in use."""
        await until(lambda: self.rows.polls_ended >= count and self.fresh is not None)


async def until(holds: Callable[[], bool], seconds: float = 300) -> None:
    """Waits for it, in virtual time."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what it looks at has no event
            await asyncio.sleep(0.005)
