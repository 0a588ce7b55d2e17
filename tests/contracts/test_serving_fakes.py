"""What serving reads from DynamoDB: the repositories and their fakes keep the same promises."""

from collections.abc import Awaitable, Callable
from itertools import count

import numpy as np
import pytest

from core.dynamo.client import Dynamo
from core.errors import NotFound
from core.models import Embedding, Model
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.models import ModelRepository
from core.settings import Settings
from core.vectors.arrays import Floats
from tests.unit.api.serving.fakes import FakeModels, FakeRows

Put = Callable[[str, Floats | None], Awaitable[None]]
VECTOR = np.array([1, 2], np.float32)
OTHER = np.array([3, 4], np.float32)


@pytest.fixture(params=["repository", "fake"])
def rows(
    request: pytest.FixtureRequest, dynamo: Dynamo, settings: Settings, model: Model
) -> tuple[EmbeddingRepository, Put]:
    """Rows of the model version, and how a test writes one, or deletes it."""
    if request.param == "fake":
        fake, seconds = FakeRows(), count()

        async def put_fake(product_id: str, vector: Floats | None) -> None:
            fake.put(product_id, vector, f"2026-01-01T00:00:{next(seconds):02d}.000000Z")

        return fake, put_fake
    repository = EmbeddingRepository(dynamo, settings)

    async def put(product_id: str, vector: Floats | None) -> None:
        if vector is None:
            await repository.delete_embedding(model, product_id)
        else:
            await repository.store_embedding(model, product_id, vector.tobytes())

    return repository, put


async def test_rows_are_read_as_they_are(
    rows: tuple[EmbeddingRepository, Put], model: Model
) -> None:
    """The latest write of each id, tombstones too, and nothing for ids that were never there."""
    repository, put = rows
    for product_id, vector in (("a", VECTOR), ("b", VECTOR), ("a", OTHER), ("b", None)):
        await put(product_id, vector)
    found = {row.product_id: row for row in await _read(repository, model, "a", "b", "never")}
    assert set(found) == {"a", "b"}
    assert (found["a"].vector, found["a"].deleted_at) == (OTHER.tobytes(), None)
    assert (found["b"].vector, found["b"].dimension) == (None, 0)
    assert found["b"].deleted_at == found["b"].updated_at
    assert await _read(repository, model) == []


async def test_changes_since_a_moment(rows: tuple[EmbeddingRepository, Put], model: Model) -> None:
    """What was written or deleted after it, and nothing from before or of that moment."""
    repository, put = rows
    for product_id in ("before", "overwritten", "deleted", "last"):
        await put(product_id, VECTOR)
    (last,) = await _read(repository, model, "last")
    await put("overwritten", OTHER)
    await put("deleted", None)
    changed = repository.changed_since(model, last.updated_at)
    found = {row.product_id: row.vector async for page in changed for row in page}
    assert found == {"overwritten": OTHER.tobytes(), "deleted": None}


@pytest.mark.parametrize("fake", [False, True])
async def test_models_are_listed_and_read(
    models: ModelRepository,
    model: Model,
    fake: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Those that are there; another name is not found."""
    repository = FakeModels(model) if fake else models
    assert model in await repository.list_models()
    assert await repository.get_model(model.model_version) == model
    with pytest.raises(NotFound):
        await repository.get_model("never-made")


async def _read(
    repository: EmbeddingRepository, model: Model, *product_ids: str
) -> list[Embedding]:
    generation = model.generation if not isinstance(repository, FakeRows) else 0
    return await repository.read_rows(model.model_version, product_ids, generation)
