"""Small versions on disk, and stand-ins for what publishes them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.errors import Corrupt, K9Error
from core.index.manifest import Manifest
from core.index.rows import RowWriter
from core.models import Build, BuildParameters, Embedding, Family, Metric, Model, now, timestamp
from core.vectors.arrays import Floats
from core.versions import VersionRecord
from tests.unit.building import build_here
from worker.building.launcher import thread_count
from worker.building.protocol import BuildSpec

DIMENSION = 4


def make(
    directory: Path,
    build_id: str,
    ids: Sequence[str],
    *,
    epoch: int = 0,
    rows: Floats | None = None,
    metric: Metric = "cosine",
    watermark: str | None = None,
    family: Family | None = None,
) -> Manifest:
    """A version of these products in `directory`, as a worker builds it."""
    moment = timestamp(now())
    random = np.random.default_rng(len(ids))
    writer = RowWriter(directory / "rows", DIMENSION)
    if rows is None:
        rows = random.normal(size=(len(ids), DIMENSION)).astype(np.float32)
    writer.append(
        [
            Embedding(product_id, "m", row.tobytes(), DIMENSION, moment)
            for product_id, row in zip(ids, rows, strict=True)
        ]
    )
    writer.close()
    spec = BuildSpec(
        rows_dir=str(directory / "rows"),
        out_dir=str(directory / "out"),
        model_version="m",
        dimension=DIMENSION,
        metric=metric,
        parameters=BuildParameters(matrix_k=3),
        family=family,
        threads=thread_count(0),
    )
    return build_here(spec, build_id=build_id, epoch=epoch, watermark=watermark or moment)


def model_of(build_id: str | None, *, fence: int = 1, epoch: int = 0) -> Model:
    """A model version whose current build it is."""
    return Model(
        "m",
        DIMENSION,
        "cosine",
        shards=1,
        created_at=timestamp(now()),
        current_build_id=build_id,
        current_fence=fence,
        epoch=epoch,
    )


def record_of(manifest: Manifest, prefix: str = "somewhere/", fence: int = 1) -> VersionRecord:
    """What the builds table says of a version."""
    contents = msgspec.json.decode(msgspec.json.encode(manifest))
    return VersionRecord(manifest.model_version, manifest.build_id, fence, prefix, contents)


class Shelf:
    """Versions by build id, in place of the store over S3."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests: dict[str, Manifest] = {}
        self.failures: dict[str, K9Error] = {}
        self.asked: list[str] = []
        self.here: set[str] = set()
        self.hanging: set[str] = set()
        """Builds that come only once `moved` is set."""
        self.moved = asyncio.Event()

    def add(self, build_id: str, ids: Sequence[str], *, epoch: int = 0) -> None:
        """Makes a version that can be had."""
        directory = self.root / build_id
        self.manifests[build_id] = make(directory, build_id, ids, epoch=epoch)

    def directory(self, record: VersionRecord) -> Path:
        """Where a version's files are."""
        return self.root / record.build_id / "out"

    async def remembered(self, model: Model) -> VersionRecord:
        """What the builds table said of the current version."""
        return record_of(self.manifests[str(model.current_build_id)])

    async def cached(self, record: VersionRecord) -> tuple[Path, Manifest] | None:
        """A version's files, where they are on this disk already."""
        build_id = record.build_id
        if build_id in self.here and not record.describes(self.manifests[build_id]):
            self.here.discard(build_id)
        return (self.directory(record), self.manifests[build_id]) if build_id in self.here else None

    async def download(self, record: VersionRecord) -> tuple[Path, Manifest]:
        """A version's files, or what is wrong with them."""
        build_id = record.build_id
        self.asked.append(build_id)
        if build_id in self.hanging:
            await self.moved.wait()
        if build_id in self.failures:
            raise self.failures[build_id]
        if build_id not in self.manifests:
            raise Corrupt("no such version")
        if not record.describes(self.manifests[build_id]):
            raise Corrupt("not the one that the builds table has")
        return self.directory(record), self.manifests[build_id]

    async def spare(self, model: Model) -> tuple[VersionRecord, Path, Manifest] | None:
        """Another build that is on this disk."""
        for build_id in self.here - {model.current_build_id}:
            record = record_of(self.manifests[build_id])
            return record, self.directory(record), self.manifests[build_id]
        return None

    async def prune(self, record: VersionRecord) -> None:
        """Keeps everything."""


class Listing:
    """The models table, and of the builds table what is removed, as a test says they are."""

    def __init__(self, *models: Model) -> None:
        self.models = list(models)
        self.failure: Exception | None = None
        self.builds_failure: Exception | None = None
        self.looks = 0
        self.removed: set[str] = set()
        self.manifests: dict[str, dict[str, Any]] = {}
        """Of builds whose manifest the table has."""

    async def list_models(self) -> list[Model]:
        """The models, or the failure."""
        self.looks += 1
        if self.failure is not None:
            raise self.failure
        return self.models

    async def get_build(self, build_id: str) -> Build:
        """A published build."""
        if self.builds_failure is not None:
            raise self.builds_failure
        moment = timestamp(now())
        removed_at = moment if build_id in self.removed else None
        current = {model.current_build_id: model.model_version for model in self.models}
        return Build(
            build_id,
            current.get(build_id, "m"),
            "published",
            moment,
            BuildParameters(),
            fence=1,
            removed_at=removed_at,
            manifest=self.manifests.get(build_id),
            prefix="somewhere/",
        )

    async def get_model(self, _model_version: str) -> Model:
        """The one model there is."""
        return self.models[0]


def damaged(manifest: Manifest) -> Manifest:
    """A manifest that does not fit its files."""
    counts = msgspec.structs.replace(manifest.counts, rows=manifest.counts.rows + 1)
    return msgspec.structs.replace(manifest, counts=counts)
