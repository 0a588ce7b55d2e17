"""Rows to build from, and a worker in this process that works until its queue is empty."""

from pathlib import Path

import numpy as np

from core.index.manifest import Manifest
from core.models import Build, BuildParameters, Model
from core.resources import Resources
from core.settings import Settings
from core.versions import VersionRecord, VersionStore
from tests.forked_builds import forked_builds
from worker.background import Background
from worker.building.runner import BuildRunner
from worker.context import WorkerContext, open_context
from worker.importing.attempt import ImportRunner
from worker.main import create_listener
from worker.reconcile import reconcile


async def store(
    resources: Resources, model_version: str, rows: int, dimension: int = 8
) -> dict[str, np.ndarray]:
    """Stores random rows; gives them by product id."""
    generator = np.random.default_rng(rows)
    vectors = generator.standard_normal((rows, dimension)).astype(np.float32)
    catalogue = {f"p{row:05d}": vector for row, vector in enumerate(vectors)}
    entries = list(catalogue.items())
    for start in range(0, rows, 1000):
        await resources.embedding_service.store_batch(model_version, entries[start : start + 1000])
    return catalogue


async def current(resources: Resources, model: Model) -> VersionRecord:
    """What the builds table says of the current version of a model version."""
    return VersionRecord.of(await resources.builds.get_build(model.current_build_id or ""))


async def ensure(store: VersionStore, record: VersionRecord) -> tuple[Path, Manifest]:
    """A verified local copy of a version, from the cache or else from S3."""
    return await store.cached(record) or await store.download(record)


async def lose_redis(resources: Resources) -> None:
    """Removes all that the environment has in Redis, as its loss would."""
    redis = resources.queue.redis
    async for key in redis.scan_iter(match=f"*k9:{resources.settings.environment}:*"):
        await redis.delete(key)


async def work(settings: Settings) -> None:
    """Runs a worker until its queue is empty, and its work finished."""
    with forked_builds():
        async with open_context(settings, reconcile=False) as context:
            await _work(settings, context)


async def _work(settings: Settings, context: WorkerContext) -> None:
    listener = create_listener(settings, context, burst=True)
    try:
        await listener.async_run()
        await context.runner.drain()
        await context.importer.drain()
        await context.background.drain()
    finally:
        await listener.close()


async def reconciled(resources: Resources) -> int:
    """A round of a worker whose slots are all taken; the number of builds and deletions found."""
    background = Background()
    runner = BuildRunner(resources, background)
    await runner.close()
    try:
        return await reconcile(resources, runner, ImportRunner(resources), background)
    finally:
        await background.drain()


async def build(
    resources: Resources, model_version: str, parameters: BuildParameters | None = None
) -> Build:
    """Requests a build, has it worked on, and gives its end."""
    asked = await resources.build_service.request(model_version, parameters or BuildParameters())
    await work(resources.settings)
    return await resources.builds.get_build(asked.build_id)
