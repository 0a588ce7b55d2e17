"""Typed stand-ins for what serving reads from: each is the class it replaces, in memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from core.attributes.values import Attributes, encode_attributes
from core.errors import Corrupt, K9Error, NotFound, Unavailable
from core.index.manifest import Manifest
from core.models import Build, BuildParameters, Embedding, Model, StoredAttributes
from core.notifications import ChangeNotification, ChangeNotifier
from core.repositories.attributes import AttributeRepository
from core.repositories.builds import BuildRepository
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.models import ModelRepository
from core.resources import Resources
from core.settings import Settings
from core.usecases.builds import BuildService
from core.vectors.arrays import Floats
from core.versions import VersionRecord, VersionStore
from tests.unit.api.serving.versions import DIMENSION, make, record_of

MOMENT = "2026-01-01T00:00:00.000000Z"


class FakeRows(EmbeddingRepository):
    """The embeddings table, of one model version, and its GSI."""

    def __init__(self) -> None:
        self.rows: dict[str, Embedding] = {}
        self.shown: list[list[str]] | None = None
        """What polls show, page by page, in place of all that changed."""
        self.shown_by_gsi: Callable[[], list[Embedding]] = lambda: list(self.rows.values())
        """The rows as the GSI has them, which may lag behind."""
        self.reads_fail = self.polls_fail = False
        self.reads = 0
        self.polls: list[str] = []
        """Since when each poll asked."""
        self.polls_ended = 0
        self.gate = asyncio.Event()
        """While it is closed, a poll waits after each page."""
        self.gate.set()

    def put(self, product_id: str, vector: Floats | None, moment: str) -> None:
        """Writes a row, or deletes it."""
        self.rows[product_id] = embedding(product_id, vector, moment)

    @override
    async def read_rows(
        self, model_version: str, product_ids: Sequence[str], generation: int | None = None
    ) -> list[Embedding]:
        """Rows as they are."""
        self.reads += 1
        if self.reads_fail:
            raise Unavailable("rows are away, says the test")
        rows = [self.rows[name] for name in product_ids if name in self.rows]
        return [row for row in rows if generation in {None, row.generation}]

    @override
    async def changed_since(
        self, model: Model, moment: str
    ) -> AsyncGenerator[list[Embedding], None]:
        """What the shards show."""
        self.polls.append(moment)
        if self.polls_fail:
            raise Unavailable("the shards are away, says the test")
        changed = [row for row in self.shown_by_gsi() if row.updated_at > moment]
        pages = [changed]
        if self.shown is not None:
            pages = [[self.rows[name] for name in page] for page in self.shown]
        for page in pages:
            yield page
            await self.gate.wait()
        await self.gate.wait()
        self.polls_ended += 1


def embedding(product_id: str, vector: Floats | None, moment: str) -> Embedding:
    """A row of the model version `m`, or the tombstone of one."""
    if vector is None:
        return Embedding(product_id, "m", None, 0, moment, moment)
    return Embedding(product_id, "m", vector.tobytes(), DIMENSION, moment)


class FakeAttributes(AttributeRepository):
    """The attributes of one model version in the embeddings table, and its GSI."""

    def __init__(self) -> None:
        self.items: dict[str, StoredAttributes] = {}
        self.shown_by_gsi: Callable[[], list[StoredAttributes]] = lambda: list(self.items.values())
        """Attributes as the GSI has them, which may lag behind."""
        self.polls: list[str] = []
        """Since when each poll asked."""
        self.reads: list[list[str]] = []
        """The ids of each read."""

    def put(
        self, product_id: str, attributes: Attributes | None, moment: str, *, alone: bool = False
    ) -> None:
        """Writes attributes, or deletes them."""
        text = "" if attributes is None else encode_attributes(attributes)
        self.items[product_id] = StoredAttributes(product_id, text, moment, alone)

    @override
    async def read_attributes(
        self, model: Model, product_ids: Sequence[str]
    ) -> list[StoredAttributes]:
        """Attributes as they are."""
        self.reads.append(list(product_ids))
        return [self.items[name] for name in product_ids if name in self.items]

    @override
    async def changed_since(
        self, model: Model, since: str
    ) -> AsyncGenerator[list[StoredAttributes], None]:
        """What the shards show."""
        self.polls.append(since)
        yield [item for item in self.shown_by_gsi() if item.updated_at > since]


class FakeModels(ModelRepository):
    """The models table."""

    def __init__(self, *models: Model) -> None:
        self.models = list(models)
        self.refused = {}
        self.failure: Exception | None = None
        self.lists = 0
        self.reads = 0

    @override
    async def list_models(self) -> list[Model]:
        """The models, or the failure."""
        self.lists += 1
        if self.failure is not None:
            raise self.failure
        return list(self.models)

    @override
    async def find_model(self, model_version: str) -> Model:
        """A model, to look at what is noted of it; not counted."""
        for model in self.models:
            if model.model_version == model_version:
                return model
        raise NotFound(f"there is no model version {model_version}")

    @override
    async def get_model(self, model_version: str) -> Model:
        """A model."""
        self.reads += 1
        return await self.find_model(model_version)


class FakeBuilds(BuildRepository):
    """The builds table: every build that is asked for was published, but the removed ones."""

    def __init__(self, models: FakeModels) -> None:
        self._listed = models
        self.failure: Exception | None = None
        self.removed: set[str] = set()
        self.manifests: dict[str, dict[str, Any]] = {}
        """Of builds whose manifest the table has."""

    @override
    async def get_build(self, build_id: str) -> Build:
        """A published build."""
        for failure in (self.failure, self._listed.failure):
            if failure is not None:
                raise failure
        current = {model.current_build_id: model.model_version for model in self._listed.models}
        return Build(
            build_id,
            current.get(build_id, "m"),
            "published",
            MOMENT,
            BuildParameters(),
            fence=1,
            removed_at=MOMENT if build_id in self.removed else None,
            manifest=self.manifests.get(build_id),
            prefix="somewhere/",
        )


class FakeBuildService(BuildService):
    """Counts what is requested."""

    def __init__(self) -> None:
        self.requested: list[str] = []

    @override
    async def request_automatic(self, model_version: str) -> Build:
        """A build."""
        self.requested.append(model_version)
        return Build("b-9", model_version, "queued", MOMENT, BuildParameters())


class FakeNotifier(ChangeNotifier):
    """Change notifications, as a test sends them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[ChangeNotification | None] = asyncio.Queue()

    @override
    def publish(
        self, model_version: str, product_ids: Iterable[str], *, attributes_only: bool = False
    ) -> None:
        """Nobody hears of it."""

    @override
    async def subscribe(self) -> AsyncIterator[ChangeNotification | None]:
        """None, as the subscription starts; then each of them."""
        yield None
        while True:
            yield await self.queue.get()

    def send(self, *product_ids: str, attributes_only: bool = False) -> None:
        """These changed."""
        self.queue.put_nowait(ChangeNotification("m", product_ids, 1, attributes_only))


class FakeVersions(VersionStore):
    """Versions by build id, those that are in S3 and those that are cached."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests: dict[str, Manifest] = {}
        self.failures: dict[str, K9Error] = {}
        self.downloads: list[str] = []
        self.cached_builds: set[str] = set()
        self.hanging: set[str] = set()
        """Builds that come only once `moved` is set."""
        self.moved = asyncio.Event()

    def add(self, build_id: str, ids: Sequence[str], **options: Any) -> None:
        """Makes a version that can be downloaded."""
        self.manifests[build_id] = make(self.root / build_id, build_id, ids, **options)

    @override
    def directory(self, record: VersionRecord) -> Path:
        """Where a version's files are."""
        return self.root / record.build_id / "out"

    @override
    async def remembered(self, model: Model) -> VersionRecord:
        """What the builds table said of the current version, where that is cached."""
        unread = VersionRecord.unread(model)
        if unread.build_id not in self.cached_builds:
            return unread
        return record_of(self.manifests[unread.build_id])

    @override
    async def cached(self, record: VersionRecord) -> tuple[Path, Manifest] | None:
        """A version's files, where they are on this disk already."""
        build_id = record.build_id
        if build_id in self.cached_builds and not record.describes(self.manifests[build_id]):
            self.cached_builds.discard(build_id)
        if build_id not in self.cached_builds:
            return None
        return self.directory(record), self.manifests[build_id]

    @override
    async def download(self, record: VersionRecord) -> tuple[Path, Manifest]:
        """A version's files, or what is wrong with them."""
        build_id = record.build_id
        self.downloads.append(build_id)
        if build_id in self.hanging:
            await self.moved.wait()
        if build_id in self.failures:
            raise self.failures[build_id]
        if build_id not in self.manifests:
            raise NotFound("no such version")
        if not record.describes(self.manifests[build_id]):
            raise Corrupt("not the one that the builds table has")
        self.cached_builds.add(build_id)
        return self.directory(record), self.manifests[build_id]

    @override
    async def fallback(self, model: Model) -> tuple[VersionRecord, Path, Manifest] | None:
        """The latest other build that is on this disk, of the same data."""
        for build_id, manifest in reversed(self.manifests.items()):
            other = build_id in self.cached_builds and build_id != model.current_build_id
            if other and manifest.data == model.data:
                record = record_of(manifest)
                return record, self.directory(record), manifest
        return None

    @override
    async def prune(self, current: VersionRecord) -> None:
        """Keeps everything."""

    @override
    async def clear(self, model_version: str) -> bool:
        """Removes the versions from the cache."""
        cached = {name for name in self.cached_builds if self._is_of(name, model_version)}
        self.cached_builds -= cached
        return True

    def _is_of(self, build_id: str, model_version: str) -> bool:
        return self.manifests[build_id].model_version == model_version


def resources_of(
    settings: Settings,
    *,
    models: ModelRepository,
    embeddings: EmbeddingRepository,
    attributes: AttributeRepository,
    builds: BuildRepository,
    build_service: BuildService,
    notifier: ChangeNotifier,
    versions: VersionStore,
) -> Resources:
    """Resources with nothing else in them: whatever else is used is an AttributeError."""
    resources = object.__new__(Resources)
    for name, value in locals().copy().items():
        if name != "resources":
            object.__setattr__(resources, name, value)
    return resources
