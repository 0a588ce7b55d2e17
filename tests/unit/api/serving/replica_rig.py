"""A follower over rows, hints and looks that a test holds in its hands."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from api.serving.changes import Freshness
from api.serving.hits import Hits
from api.serving.registry import IndexRegistry
from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core.errors import Unavailable
from core.index.manifest import Manifest
from core.models import Embedding, Model, now, timestamp
from core.notifications import ChangeNotification
from core.settings import Serving, Settings
from core.vectors.arrays import Floats
from tests.unit.api.serving.versions import DIMENSION, make, model_of

IDS = ("a", "b", "c", "d", "e", "f")


def ago(seconds: float) -> str:
    """A moment so long before now."""
    return timestamp(now() - timedelta(seconds=seconds))


def vector(seed: int) -> Floats:
    """A vector, the same for the same seed."""
    made: Floats = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return made


class Table:
    """Rows of one model version, in place of the repository over DynamoDB."""

    def __init__(self) -> None:
        self.rows: dict[str, Embedding] = {}
        self.shown: list[list[str]] | None = None
        """What looks show, page by page, in place of all that changed."""
        self.reads_fail = self.looks_fail = False
        self.reads = 0
        self.looks: list[str] = []
        """Since when each look asked."""
        self.ended = 0
        """Looks that came to their end."""
        self.gate = asyncio.Event()
        """While it is closed, a look waits after its first page."""
        self.gate.set()

    def put(self, product_id: str, row: Floats | None, moment: str = "") -> str:
        """Writes a row, or deletes it; when that was."""
        moment = moment or timestamp(now())
        data = None if row is None else row.tobytes()
        self.rows[product_id] = Embedding(
            product_id, "m", data, DIMENSION, moment, None if data else moment
        )
        return moment

    async def read_rows(
        self, _model_version: str, product_ids: Sequence[str], generation: int
    ) -> list[Embedding]:
        """Rows as they are."""
        self.reads += 1
        if self.reads_fail:
            raise Unavailable("rows are away, says the test")
        rows = [self.rows[name] for name in product_ids if name in self.rows]
        return [row for row in rows if row.generation == generation]

    async def changed_since(
        self, _model: Model, moment: str
    ) -> AsyncGenerator[list[Embedding], None]:
        """What the shards show."""
        self.looks.append(moment)
        if self.looks_fail:
            raise Unavailable("the shards are away, says the test")
        changed = [name for name, row in self.rows.items() if row.updated_at > moment]
        for page in [changed] if self.shown is None else self.shown:
            yield [self.rows[name] for name in page]
            await self.gate.wait()
        await self.gate.wait()
        self.ended += 1


class Asked:
    """The models table, and the place where builds are requested."""

    def __init__(self) -> None:
        self.model = model_of("b-1")
        self.looked_up = 0
        self.builds = 0

    async def get_model(self, _model_version: str) -> Model:
        """The model version as it is."""
        self.looked_up += 1
        return self.model

    async def request_automatic(self, _model_version: str) -> SimpleNamespace:
        """A build."""
        self.builds += 1
        return SimpleNamespace(build_id="b-9")


class FakeNotifier:
    """Change notifications, as a test sends them."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[ChangeNotification | None] = asyncio.Queue()

    async def subscribe(self) -> AsyncIterator[ChangeNotification | None]:
        """Each of them."""
        while True:
            yield await self.waiting.get()

    def send(self, *product_ids: str) -> None:
        """Notifies that these changed."""
        self.waiting.put_nowait(ChangeNotification("m", product_ids, 1))


class Rig:
    """Freshness of one model version."""

    def __init__(self, root: Path, **serving: Any) -> None:
        self.root = root
        self.manifests: dict[str, Manifest] = {}
        self.table = Table()
        self.asked = Asked()
        self.notifier = FakeNotifier()
        models: Any = self.asked
        self.registry = IndexRegistry(models, 1 << 30)
        resources: Any = SimpleNamespace(
            embeddings=self.table,
            models=self.asked,
            build_service=self.asked,
            notifier=self.notifier,
            settings=Settings(serving=Serving(**{"poll_s": 600.0, **serving})),
        )
        self.freshness = Freshness(resources, self.registry)
        self.registry.bring = self.freshness.bring
        self.registry.forget = self.freshness.forget
        self.registry.learn([self.asked.model])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the first build, `b-1`, in use, and hints heard."""
        hearing = asyncio.create_task(self.freshness.run())
        try:
            await self.adopt("b-1")
            yield
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            await self.freshness.aclose()

    async def adopt(self, build_id: str, ids: Sequence[str] = IDS) -> None:
        """Puts a build of these products, as they were an hour ago, to use."""
        directory, model = self.root / build_id, model_of(build_id)
        if build_id not in self.manifests:
            rows = np.stack([vector(ord(name)) for name in ids])
            self.manifests[build_id] = make(
                directory, build_id, ids, rows=rows, watermark=ago(3600)
            )
        index = Segment.open(directory / "out", self.manifests[build_id], model)
        await self.freshness.adopt(model, index)

    async def view(self) -> Snapshot:
        """What answers."""
        return await self.registry.wanted("m")

    async def fresh(self) -> int | None:
        """What answers say of what changed."""
        return (await self.view()).provenance.fresh

    async def has(self, product_id: str) -> bool:
        """Whether a product is known, and found by its present form."""
        return (await self.view()).find(product_id) is not None

    async def found(self, row: Floats, k: int = 100, *, exact: bool = False) -> Hits:
        """A search."""
        return (await self.view()).search([row], k, exact=exact)[0]

    async def looked(self, count: int = 1) -> None:
        """Waits until so many looks came to their end, and what they showed is in use."""

        async def over() -> bool:
            return self.table.ended >= count and await self.fresh() is not None

        await until(over)


async def until(holds: Callable[[], Any], seconds: float = 20) -> None:
    """Waits for it."""
    async with asyncio.timeout(seconds):
        for _ in iter(int, 1):
            if await holds():
                return
            await asyncio.sleep(0.005)
