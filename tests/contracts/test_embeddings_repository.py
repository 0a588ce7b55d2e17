"""The embeddings table's promises, on every emulator."""

from uuid import uuid4

import msgspec
import numpy as np
import pytest

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.errors import NotFound
from core.models import Embedding, Model
from core.repositories.embedding_rows import EmbeddingPosition
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.models import ModelRepository
from core.settings import Settings

IDS = ("plain", "with/slash", "with space", "100%", "grüße-日本", "é" * 256)


def vector(*numbers: float) -> bytes:
    """float32 little-endian bytes."""
    return np.array(numbers, "<f4").tobytes()


@pytest.fixture
def embeddings(dynamo: Dynamo, settings: Settings) -> EmbeddingRepository:
    """The repository under test."""
    return EmbeddingRepository(dynamo, settings)


@pytest.fixture
async def model(dynamo: Dynamo, settings: Settings) -> Model:
    """A model version of this test's own."""
    models = ModelRepository(dynamo, settings)
    return await models.create_model(f"m-{uuid4().hex[:12]}", 2, "cosine", 4)


async def pulled(embeddings: EmbeddingRepository, model: Model) -> list[Embedding]:
    """Every row that the reader gives."""
    return [row async for page in embeddings.get_embeddings_by_model(model) for row in page]


@pytest.mark.parametrize("product_id", IDS)
async def test_a_row_comes_back_as_it_went_in(
    embeddings: EmbeddingRepository, model: Model, product_id: str
) -> None:
    """Whatever its id, a stored row is read back bit for bit."""
    stored = await embeddings.store_embedding(model, product_id, vector(0.1, -1e-40))
    assert stored.created
    read = await embeddings.get_embedding(model.model_version, product_id)
    assert (read.product_id, read.dimension) == (product_id, stored.dimension)
    assert (read.updated_at, read.generation) == (stored.updated_at, stored.generation)
    assert read.vector == vector(0.1, -1e-40)


async def test_an_overwrite_is_not_a_creation(
    embeddings: EmbeddingRepository, model: Model
) -> None:
    """The second put of an id says that it was there, and the newer vector stays."""
    await embeddings.store_embedding(model, "twice", vector(1, 2))
    created = (await embeddings.store_embedding(model, "twice", vector(3, 4))).created
    assert not created
    assert (await embeddings.get_embedding(model.model_version, "twice")).vector == vector(3, 4)


async def test_a_delete_leaves_a_tombstone(embeddings: EmbeddingRepository, model: Model) -> None:
    """A deleted row is not found any more, cannot be deleted again, and can be made anew."""
    await embeddings.store_embedding(model, "gone", vector(1, 2))
    deleted = await embeddings.delete_embedding(model, "gone")
    with pytest.raises(NotFound):
        await embeddings.get_embedding(model.model_version, "gone")
    with pytest.raises(NotFound):
        await embeddings.delete_embedding(model, "gone")
    (tombstone,) = await pulled(embeddings, model)
    assert (tombstone.product_id, tombstone.vector, tombstone.dimension) == ("gone", None, 0)
    assert tombstone.updated_at == tombstone.deleted_at == deleted.deleted_at
    created = (await embeddings.store_embedding(model, "gone", vector(5, 6))).created
    assert created
    assert [row.deleted_at for row in await pulled(embeddings, model)] == [None]


async def test_what_was_never_there_cannot_be_deleted(
    embeddings: EmbeddingRepository, model: Model
) -> None:
    """Deleting an unknown id leaves no tombstone behind."""
    with pytest.raises(NotFound):
        await embeddings.delete_embedding(model, "never")
    assert await pulled(embeddings, model) == []


async def test_the_reader_streams_every_row_once(
    embeddings: EmbeddingRepository, model: Model
) -> None:
    """A batch of many rows, over every shard, is pulled whole."""
    rows = {f"p{i}": vector(i, -i) for i in range(230)}
    assert await embeddings.store_batch(model, list(rows.items())) == []
    assert {row.product_id: row.vector for row in await pulled(embeddings, model)} == rows


async def test_models_do_not_mix(embeddings: EmbeddingRepository, model: Model) -> None:
    """A product of one model version is unknown to another, and not pulled with it."""
    await embeddings.store_embedding(model, "mine", vector(1, 2))
    other = Model("other-" + model.model_version, 2, "cosine", 4, model.created_at)
    assert await pulled(embeddings, other) == []
    with pytest.raises(NotFound):
        await embeddings.get_embedding(other.model_version, "mine")


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_pages_hold_every_live_row_once(
    embeddings: EmbeddingRepository, model: Model, limit: int
) -> None:
    """Paging by any size gives all rows but the deleted, each once."""
    rows = [(f"p{i}", vector(i, 1)) for i in range(23)]
    await embeddings.store_batch(model, rows)
    await embeddings.delete_embedding(model, "p5")
    assert sorted(await listed(embeddings, model, limit)) == sorted(
        f"p{i}" for i in range(23) if i != 5
    )


async def test_rows_behind_many_deleted_ones_are_listed(
    embeddings: EmbeddingRepository, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DynamoDB's pages that have none but tombstones do not end a shard."""
    monkeypatch.setattr("core.repositories.embeddings._LIST_ROWS", 1)
    names = [f"p{i}" for i in range(24)]
    await embeddings.store_batch(model, [(name, vector(1, 1)) for name in names])
    for name in names[:12]:
        await embeddings.delete_embedding(model, name)
    assert sorted(await listed(embeddings, model, 1)) == sorted(names[12:])


async def listed(embeddings: EmbeddingRepository, model: Model, limit: int) -> list[str]:
    """The product ids of all pages."""
    seen: list[str] = []
    position: EmbeddingPosition | None = None
    while True:
        page, position = await embeddings.list_embeddings(
            model, limit=limit, position=position, vectors=False
        )
        assert len(page) <= limit
        assert all(row.vector is None and row.dimension == 2 for row in page)
        seen += [row.product_id for row in page]
        if position is None:
            return seen


async def test_a_model_of_tombstones_has_no_rows(
    embeddings: EmbeddingRepository, model: Model
) -> None:
    """A model version counts as empty before its first row and after its last delete."""
    assert not await embeddings.has_rows(model)
    await embeddings.store_embedding(model, "only", vector(1, 2))
    assert await embeddings.has_rows(model)
    await embeddings.delete_embedding(model, "only")
    assert not await embeddings.has_rows(model)


async def test_a_vector_of_older_data_is_read(
    dynamo: Dynamo, settings: Settings, embeddings: EmbeddingRepository, model: Model
) -> None:
    """A row that holds its vector as a list of numbers is read as float32.

    Such rows are of generation 0: no release wrote them that knew of another.
    """
    model = msgspec.structs.replace(model, generation=0)
    await dynamo.call(
        "put_item",
        TableName=settings.table("embeddings"),
        Item={
            "product_id": {"S": "old"},
            "model_version": {"S": model.model_version},
            tables.MODEL_SHARD: {"S": tables.model_shard(model.model_version, 0)},
            "embedding_vector": {"L": [{"N": "0.1"}, {"N": "-2"}]},
            "vector_dimension": {"N": "2"},
            "created_at": {"S": "2025-01-01T00:00:00.000000Z"},
            "updated_at": {"S": "2025-01-01T00:00:00.000000Z"},
        },
    )
    read = await embeddings.get_embedding(model.model_version, "old")
    assert read.vector == vector(0.1, -2)
    assert [row.vector for row in await pulled(embeddings, model)] == [vector(0.1, -2)]


async def test_rows_are_read_by_their_ids(embeddings: EmbeddingRepository, model: Model) -> None:
    """More than one call takes; tombstones too, and nothing for ids that were never there."""
    rows = {f"p{i}": vector(i, -i) for i in range(230)}
    await embeddings.store_batch(model, list(rows.items()))
    await embeddings.delete_embedding(model, "p7")
    found = await embeddings.read_rows(model.model_version, ["never", *rows, *IDS])
    assert {row.product_id: row.vector for row in found} == rows | {"p7": None}
    assert [row.product_id for row in found if row.deleted_at] == ["p7"]
    assert await embeddings.read_rows(model.model_version, []) == []


async def test_changes_since_a_moment(embeddings: EmbeddingRepository, model: Model) -> None:
    """What was stored, overwritten or deleted after it, and nothing from before."""
    await embeddings.store_batch(model, [(f"p{i}", vector(i, 1)) for i in range(60)])
    last = await embeddings.store_embedding(model, "last", vector(9, 9))
    await embeddings.store_embedding(model, "new", vector(1, 2))
    await embeddings.store_embedding(model, "p3", vector(3, 4))
    await embeddings.delete_embedding(model, "p4")
    found = [row async for page in embeddings.changed_since(model, last.updated_at) for row in page]
    assert {row.product_id: row.vector for row in found} == {
        "new": vector(1, 2),
        "p3": vector(3, 4),
        "p4": None,
    }
