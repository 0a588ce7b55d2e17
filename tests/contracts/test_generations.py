"""Two model versions of one name, one after the other: no write to the first shows in the second.

Generation 0 is what releases up to 23e14f8 wrote.
"""

import asyncio
import time
from uuid import uuid4

import msgspec
import pytest

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import equals, expressions, key
from core.errors import LeaseLost, ModelBeingDeleted, NotFound, OtherGeneration
from core.models import Model, now, timestamp
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import Claim, IdempotencyRepository
from core.repositories.model_deletions import ModelDeletionRepository
from core.repositories.models import MODEL_CODEC, ModelRepository, decode_model
from core.settings import Settings
from tests.contracts.test_embeddings_repository import pulled, vector


@pytest.fixture
def embeddings(dynamo: Dynamo, settings: Settings) -> EmbeddingRepository:
    """The repository under test."""
    return EmbeddingRepository(dynamo, settings)


@pytest.fixture
def deletions(dynamo: Dynamo, settings: Settings) -> ModelDeletionRepository:
    """The repository under test."""
    return ModelDeletionRepository(dynamo, settings)


@pytest.fixture(params=[False, True], ids=["generation", "generation 0"])
def earlier(model: Model, request: pytest.FixtureRequest) -> Model:
    """The earlier model version, of this release or of an earlier one."""
    return msgspec.structs.replace(model, generation=0) if request.param else model


@pytest.fixture
def later(model: Model) -> Model:
    """The later model version of its name."""
    return msgspec.structs.replace(model, generation=model.generation + 10**6, dimension=3)


async def claimed(dynamo: Dynamo, settings: Settings) -> Claim:
    """A claim on an idempotency key of its own."""
    claim = await IdempotencyRepository(dynamo, settings).begin(uuid4().hex, "key", "f")
    assert isinstance(claim, Claim)
    return claim


async def marked(models: ModelRepository, model: Model) -> Model:
    """The model version, marked for deletion."""
    model = msgspec.structs.replace(model, deleting_at=timestamp(now()))
    await models.mark_model(model)
    return model


async def test_a_late_row_shows_in_no_later_model(
    embeddings: EmbeddingRepository, earlier: Model, later: Model
) -> None:
    """Neither in a listing, nor in what changed, nor when it is read by its id."""
    name = later.model_version
    await embeddings.store_embedding(earlier, "late", vector(1, 2))
    assert await pulled(embeddings, later) == []
    assert await embeddings.list_embeddings(later, limit=10) == ([], None)
    assert not await embeddings.has_rows(later)
    assert await embeddings.read_rows(name, ["late"], later.generation) == []
    with pytest.raises(NotFound):
        await embeddings.get_embedding(name, "late", later.generation)
    with pytest.raises(NotFound):
        await embeddings.delete_embedding(later, "late")
    assert [row.product_id for row in await pulled(embeddings, earlier)] == ["late"]


async def test_a_late_write_replaces_no_row_of_a_later_model(
    dynamo: Dynamo,
    settings: Settings,
    embeddings: EmbeddingRepository,
    earlier: Model,
    later: Model,
) -> None:
    """Neither a put nor a deletion, with an idempotency key or without."""
    await embeddings.store_embedding(later, "p", vector(1, 2, 3))
    for claim in (None, await claimed(dynamo, settings)):
        with pytest.raises(OtherGeneration):
            await embeddings.store_embedding(earlier, "p", vector(9, 9), claim)
        with pytest.raises(NotFound):
            await embeddings.delete_embedding(earlier, "p", claim)
    found = await embeddings.get_embedding(later.model_version, "p", later.generation)
    assert found.vector == vector(1, 2, 3)


async def test_a_late_batch_under_a_key_replaces_nothing(
    dynamo: Dynamo,
    settings: Settings,
    embeddings: EmbeddingRepository,
    earlier: Model,
    later: Model,
) -> None:
    """And a checkpoint of the earlier model version does not count for the later."""
    claim = await claimed(dynamo, settings)
    await embeddings.store_embedding(later, "p", vector(1, 2, 3))
    with pytest.raises(OtherGeneration):
        await embeddings.store_batch(earlier, [("p", vector(9, 9))], claim=claim)
    had = f"{earlier.generation}_0" if earlier.generation else "0"
    claim = msgspec.structs.replace(claim, checkpoints=frozenset({had}))
    assert await embeddings.store_batch(earlier, [("p", vector(9, 9))], claim=claim) == []
    left = await embeddings.store_batch(later, [("p", vector(4, 5, 6))], claim=claim)
    assert left == []
    found = await embeddings.get_embedding(later.model_version, "p", later.generation)
    assert found.vector == vector(4, 5, 6)


async def test_rows_are_removed_with_their_generation_alone(
    embeddings: EmbeddingRepository, earlier: Model, later: Model
) -> None:
    """A removal that comes late, by a worker that stood still, finds other rows and leaves them."""
    for product_id in ("a", "b"):
        await embeddings.store_embedding(earlier, product_id, vector(1, 2))
    rows = await embeddings.read_rows(earlier.model_version, ["a", "b"])
    assert await embeddings.remove_rows(rows[:1]) == 1
    await embeddings.store_embedding(later, rows[0].product_id, vector(1, 2, 3))
    assert await embeddings.remove_rows(rows) == 1
    assert [row.product_id for row in await pulled(embeddings, later)] == [rows[0].product_id]
    assert await pulled(embeddings, earlier) == []


async def test_no_batch_is_put_after_its_moment(
    embeddings: EmbeddingRepository, models: ModelRepository, model: Model
) -> None:
    """Puts of a batch have no condition: they end in time, and say which rows are left."""
    rows = [("a", vector(1, 2)), ("b", vector(1, 2))]
    assert await embeddings.store_batch(model, rows, time.monotonic() - 0.01) == ["a", "b"]
    assert await pulled(embeddings, model) == []
    assert await embeddings.store_batch(model, rows, models.batch_until(model)) == []
    gone = msgspec.structs.replace(model, generation=model.generation - 1)
    assert models.batch_until(gone) < time.monotonic()


async def test_a_marked_model_is_found_and_nothing_else(
    models: ModelRepository, model: Model
) -> None:
    """Whoever writes or reads is told at once; the mark is made once."""
    name = model.model_version
    await models.known_model(name)
    deleting = await marked(models, model)
    for refused in (models.get_model(name), models.known_model(name), marked(models, model)):
        with pytest.raises(ModelBeingDeleted, match="being deleted"):
            await refused
    with pytest.raises(ModelBeingDeleted):
        await models.create_model(name, 5, "ip", 1)
    assert await models.find_model(name) == deleting
    assert deleting in await models.list_models()


async def test_a_process_learns_of_a_mark_from_a_list(
    dynamo: Dynamo, settings: Settings, models: ModelRepository, model: Model
) -> None:
    """Without waiting for what it remembers to end."""
    other = ModelRepository(dynamo, settings)
    await other.known_model(model.model_version)
    await marked(models, model)
    assert await other.known_model(model.model_version) == model
    await other.list_models()
    with pytest.raises(ModelBeingDeleted):
        await other.known_model(model.model_version)


async def test_one_worker_has_a_deletion_until_its_lease_ends(
    dynamo: Dynamo, settings: Settings, models: ModelRepository, model: Model
) -> None:
    """Renewed it stays; released, or not renewed in time, another one takes it over."""
    short = msgspec.structs.replace(
        settings, building=msgspec.structs.replace(settings.building, lease_s=0.05)
    )
    one, other = (ModelDeletionRepository(dynamo, where) for where in (settings, short))
    assert await one.claim(model) is None
    deleting = await marked(models, model)
    claim = await one.claim(deleting)
    assert claim is not None
    assert await other.claim(deleting) is None
    await one.renew(claim)
    await one.release(claim)
    taken = await other.claim(deleting)
    assert taken is not None
    async with asyncio.timeout(30):
        while await one.claim(deleting) is None:  # noqa: ASYNC110 - the lease of the other ends
            await asyncio.sleep(0.01)
    with pytest.raises(LeaseLost):
        await other.remove_model(taken)


async def test_the_record_goes_on_condition_of_its_mark(
    deletions: ModelDeletionRepository,
    models: ModelRepository,
    dynamo: Dynamo,
    settings: Settings,
    model: Model,
) -> None:
    """And not while a build is open; the name can then be used again, with another dimension."""
    name = model.model_version
    claim = await deletions.claim(await marked(models, model))
    assert claim is not None
    table = settings.table("models")
    item = (await dynamo.call("get_item", TableName=table, Key=key(model_version=name)))["Item"]
    await dynamo.call("put_item", TableName=table, Item={**item, "open_build_id": {"S": "b"}})
    assert not await deletions.remove_model(claim)
    await dynamo.call("put_item", TableName=table, Item=item)
    assert await deletions.remove_model(claim)
    with pytest.raises(NotFound):
        await models.find_model(name)
    made = await models.create_model(name, 7, "l2", 2)
    assert (made.dimension, made.metric, made.shards) == (7, "l2", 2)
    assert made.generation > model.generation
    with pytest.raises(LeaseLost):
        await deletions.remove_model(claim)
    assert await models.find_model(name) == made


async def test_an_earlier_release_finds_no_shards(
    dynamo: Dynamo, settings: Settings, model: Model
) -> None:
    """It would write rows where nobody reads them: so it finds nowhere to write to."""
    reply = await dynamo.call(
        "get_item",
        TableName=settings.table("models"),
        Key=key(model_version=model.model_version),
        ConsistentRead=True,
    )
    assert MODEL_CODEC.decode(reply["Item"]).shards == 0
    assert decode_model(reply["Item"]) == model


async def test_a_record_of_an_earlier_release_is_read_and_deleted(
    dynamo: Dynamo, settings: Settings, models: ModelRepository, deletions: ModelDeletionRepository
) -> None:
    """It has no generation, and its rows lie in partitions without one."""
    old = Model(f"old-{uuid4().hex[:8]}", 2, "cosine", 4, timestamp(now()))
    item = MODEL_CODEC.encode(old)
    del item["generation"]
    await dynamo.call("put_item", TableName=settings.table("models"), Item=item)
    assert await models.get_model(old.model_version) == old
    rows = EmbeddingRepository(dynamo, settings)
    await rows.store_embedding(old, "p", vector(1, 2))
    stored = await dynamo.call(
        "query",
        TableName=settings.table("embeddings"),
        IndexName=tables.MODEL_VERSION_INDEX,
        **expressions(
            key=equals(
                tables.MODEL_SHARD, f"{old.model_version}#{tables.shard_of('p', old.shards)}"
            )
        ),
    )
    assert "generation" not in stored["Items"][0]
    claim = await deletions.claim(await marked(models, old))
    assert claim is not None
    [page] = [page async for page in rows.get_embeddings_by_model(claim.model, vectors=False)]
    assert len(page) == 1
    await rows.remove_rows(page)
    assert await deletions.remove_model(claim)
    assert await pulled(rows, old) == []
