"""A model version that is deleted: nothing is left, and nothing of it comes back under its name."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest

from core.dynamo.client import Dynamo
from core.errors import ModelBeingDeleted, NotFound, Unavailable
from core.models import BuildParameters, ImportParameters, Model, UploadTerms, now, timestamp
from core.names import bad_rows_key, version_prefix
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.worker.processes import until
from tests.worker.test_durability import is_heavy, requested, worker
from tests.worker.work import build, reconciled, store
from worker.model_deletion import delete_model

LEASE_S = 0.3


def hasty(settings: Settings) -> Settings:
    """Those of a worker that waits for nobody's writes: in these tests they are done."""
    ingest = msgspec.structs.replace(
        settings.ingest, model_cache_s=0.05, batch_deadline_s=0.05, write_settle_s=0.05
    )
    return msgspec.structs.replace(settings, ingest=ingest)


@pytest.fixture
async def quick(settings: Settings) -> AsyncIterator[Resources]:
    """A worker's, whose lease ends soon; builds need longer ones."""
    building = msgspec.structs.replace(settings.building, lease_s=LEASE_S)
    own = msgspec.structs.replace(hasty(settings), building=building)
    async with open_resources(own) as opened:
        yield opened


async def marked(resources: Resources, model_version: str) -> Model:
    """The model version, marked for deletion."""
    model = await resources.models.get_model(model_version)
    model = msgspec.structs.replace(model, deleting_at=timestamp(now()))
    await resources.models.mark_model(model)
    return model


async def deleted(resources: Resources, model: Model) -> None:
    """Has a worker go on until the record is gone: it may first have to wait."""
    async with asyncio.timeout(60):
        while True:
            await delete_model(resources, model)
            try:
                await resources.models.find_model(model.model_version)
            except NotFound:
                return
            await asyncio.sleep(0.05)


async def rows_of(resources: Resources, model: Model) -> list[str]:
    """The ids of all rows that its shards show, tombstones too."""
    pages = resources.embeddings.get_embeddings_by_model(model)
    return sorted([row.product_id async for page in pages for row in page])


async def test_all_of_a_model_goes_and_its_name_can_be_used_again(
    resources: Resources, model_version: str, quick: Resources
) -> None:
    """Rows, tombstones, builds, files and record; then with another dimension and metric."""
    await store(resources, model_version, 40)
    await resources.embedding_service.delete_embedding(model_version, "p00003")
    for product_id in ("p00001", "p00002"):
        await resources.embedding_service.patch_attributes(model_version, product_id, {"a": 1})
    published = await build(resources, model_version)
    waiting = await resources.build_service.request(model_version, BuildParameters(force=True))
    terms = UploadTerms(1, "0" * 64)
    upload = await resources.import_service.request(model_version, ImportParameters(""), terms)
    report = bad_rows_key(resources.settings.environment, upload.import_id, 1)
    for key in (upload.parameters.key, report):
        await resources.objects.put(key, b"x")
    earlier = await marked(resources, model_version)
    await deleted(quick, earlier)
    assert await rows_of(resources, earlier) == []
    with pytest.raises(NotFound):
        await resources.imports.get_import(upload.import_id)
    left = await resources.objects.list_keys("")
    assert not [key for key in left if upload.import_id in key]
    assert [page async for page in resources.attributes.keys_by_model(earlier)] == []
    for build_id in (published.build_id, waiting.build_id):
        with pytest.raises(NotFound):
            await resources.builds.get_build(build_id)
    assert not [key for key in await resources.objects.list_keys("") if model_version in key]
    vector = np.ones(3, np.float32)
    await resources.embedding_service.store_embedding(model_version, "p00001", vector, "l2")
    later = await resources.models.get_model(model_version)
    assert (later.dimension, later.metric, later.current_build_id) == (3, "l2", None)
    assert await rows_of(resources, later) == ["p00001"]
    made_anew = await resources.embeddings.get_embedding(model_version, "p00001")
    assert made_anew.attributes is None
    following = await build(resources, model_version)
    assert following.status == "published"
    assert following.manifest is not None
    assert following.manifest["counts"]["rows"] == 1
    assert (following.generation, following.manifest["generation"]) == (later.generation,) * 2


async def test_nothing_goes_while_writes_may_arrive(
    resources: Resources, model_version: str, quick: Resources
) -> None:
    """A process that read the record just before the mark may go on until then."""
    await store(resources, model_version, 5)
    model = await marked(resources, model_version)
    assert not await delete_model(resources, model)
    assert len(await rows_of(resources, model)) == 5
    with pytest.raises(ModelBeingDeleted):
        await resources.embedding_service.store_embedding(
            model_version, "p", np.ones(8, np.float32)
        )
    with pytest.raises(ModelBeingDeleted):
        await resources.build_service.request(model_version, BuildParameters())
    await deleted(quick, model)


async def test_a_build_under_way_is_cancelled(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """Its worker stops, and what it had put into the bucket goes with the rest."""
    building = msgspec.structs.replace(settings.building, lease_s=3.0, heartbeat_s=0.5)
    async with worker(msgspec.structs.replace(hasty(settings), building=building)):
        build_id = await requested(resources, model_version, slow=True)
        await until(resources, build_id, is_heavy)
        await marked(resources, model_version)
        async with asyncio.timeout(60):
            while True:  # the worker's own reconciler sees to it
                try:
                    await resources.models.find_model(model_version)
                except NotFound:
                    break
                await asyncio.sleep(0.05)
    with pytest.raises(NotFound):
        await resources.builds.get_build(build_id)
    assert not [key for key in await resources.objects.list_keys("") if model_version in key]


async def test_a_verification_of_a_deleted_model_ends(
    resources: Resources, model_version: str, quick: Resources
) -> None:
    """It is open like a build, and is not left open."""
    await store(resources, model_version, 5)
    published = await build(resources, model_version)
    verification = await resources.verifications.open(published)
    await deleted(quick, await marked(resources, model_version))
    assert verification.build_id not in {row.build_id for row in await resources.builds.list_open()}


Step = tuple[str, str]
"""An operation, and the table and index that it is for."""


class _Watched(Dynamo):
    """The client of a worker, to whom something happens at the first call of one step."""

    def __init__(self, dynamo: Dynamo, step: Step | None, happens: str = "") -> None:
        super().__init__(None, deadline_s=1)
        self._dynamo = dynamo
        self._step = step
        self._happens = happens
        self.steps: list[Step] = []
        """The steps so far, each once."""
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Passes the call on."""
        table = parameters.get("TableName", "several")
        step = operation, f"{table} {parameters.get('IndexName', '')}"
        first = step not in self.steps
        if first:
            self.steps.append(step)
        now_it_happens = first and step == self._step
        if now_it_happens and self._happens == "pause":
            self.paused.set()
            await self.resumed.wait()
        if now_it_happens and self._happens == "death before":
            raise Unavailable("the worker died, says the test")
        reply = await self._dynamo.call(operation, **parameters)
        if now_it_happens and self._happens == "death after":
            raise Unavailable("the worker died, says the test")
        return reply


def _with_client(resources: Resources, dynamo: Dynamo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has deletions work through another client."""
    for owner in (
        *(resources.model_deletions, resources.embeddings),
        *(resources.builds, resources.imports),
    ):
        monkeypatch.setattr(owner, "_dynamo", dynamo)


async def _begun(resources: Resources, model_version: str) -> Model:
    """A marked model version with rows, an open build, and a file that its worker left."""
    await store(resources, model_version, 4)
    opened = await resources.build_service.request(model_version, BuildParameters())
    prefix = version_prefix(resources.settings.environment, model_version, opened.build_id, 1)
    await resources.objects.put(prefix + "ids", b"x")
    return await marked(resources, model_version)


async def _steps(resources: Resources, quick: Resources, model_version: str) -> list[Step]:
    """All that a deletion does."""
    model = await _begun(resources, model_version)
    watched = _Watched(quick.dynamo, None)
    with pytest.MonkeyPatch.context() as patch:
        _with_client(quick, watched, patch)
        await deleted(quick, model)
    assert len(watched.steps) >= 8
    return watched.steps


@pytest.mark.parametrize("death", ["death before", "death after"])
async def test_a_deletion_goes_on_where_a_worker_died(
    resources: Resources,
    quick: Resources,
    model_version: str,
    monkeypatch: pytest.MonkeyPatch,
    death: str,
) -> None:
    """Whichever step it was, the next rounds leave nothing."""
    for number, step in enumerate(await _steps(resources, quick, model_version)):
        model = await _begun(resources, f"{model_version}-{number}")
        with monkeypatch.context() as patch:
            watched = _Watched(quick.dynamo, step, death)
            _with_client(quick, watched, patch)
            await deleted(quick, model)
        assert step in watched.steps
        assert await rows_of(resources, model) == []
        builds, _ = await resources.builds.list_builds(model.model_version, limit=10)
        assert builds == []
        keys = await resources.objects.list_keys("")
        assert not [key for key in keys if f"/{model.model_version}/" in key]


async def test_a_slow_worker_destroys_nothing_of_a_later_model(
    resources: Resources, model_version: str, quick: Resources
) -> None:
    """Whichever step it stood still before, while another one finished and the name was reused."""
    for number, step in enumerate(await _steps(resources, quick, model_version)):
        name = f"{model_version}-{number}"
        model = await _begun(resources, name)
        async with open_resources(quick.settings) as slow:
            watched = _Watched(slow.dynamo, step, "pause")
            with pytest.MonkeyPatch.context() as patch:
                _with_client(slow, watched, patch)
                slowly = asyncio.create_task(deleted(slow, model))
                async with asyncio.timeout(60):
                    await watched.paused.wait()
                await deleted(quick, model)
                catalogue = await store(resources, name, 5, dimension=3)
                opened = await resources.build_service.request(name, BuildParameters())
                later = await resources.models.get_model(name)
                watched.resumed.set()
                await delete_model(slow, model)
                slowly.cancel()
                await asyncio.gather(slowly, return_exceptions=True)
        assert await resources.models.get_model(name) == later
        assert await rows_of(resources, later) == sorted(catalogue)
        assert await resources.builds.get_build(opened.build_id) == opened


async def test_every_worker_looks_for_marked_models(
    resources: Resources, model_version: str
) -> None:
    """Through the table alone: no message is needed, and none is sent."""
    await store(resources, model_version, 2)
    before = await reconciled(resources)
    await marked(resources, model_version)
    assert await reconciled(resources) == before + 1
