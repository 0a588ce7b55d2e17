"""The models table's promises, on every emulator."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from core.dynamo.client import open_dynamo
from core.errors import NotFound
from core.repositories.models import ModelRepository
from core.settings import Settings


@pytest.fixture
async def models(settings: Settings) -> AsyncIterator[ModelRepository]:
    """The repository under test."""
    async with open_dynamo(settings) as dynamo:
        yield ModelRepository(dynamo, settings)


async def test_an_unknown_model_version_is_not_found(models: ModelRepository) -> None:
    """Reading a model version that was never written to says so, by name."""
    with pytest.raises(NotFound, match="never-written"):
        await models.get_model("never-written")


async def test_the_first_write_fixes_what_a_model_is(models: ModelRepository) -> None:
    """A second creation changes nothing and gives back the first."""
    first = await models.create_model("fixed", 3, "cosine", 8)
    second = await models.create_model("fixed", 4, "l2", 2)
    assert (first.dimension, first.metric, first.shards) == (3, "cosine", 8)
    assert second == first == await models.get_model("fixed")


async def test_of_creations_in_flight_together_one_wins(models: ModelRepository) -> None:
    """Every concurrent first write is told the same model."""
    made = await asyncio.gather(
        *(models.create_model("raced", dimension, "ip", 4) for dimension in range(1, 9))
    )
    assert len({model.dimension for model in made}) == 1
    assert await models.get_model("raced") == made[0]


async def test_every_model_is_listed_by_name(models: ModelRepository) -> None:
    """A listing holds each model version once, sorted."""
    for name in ("list-b", "list-a", "list-c"):
        await models.create_model(name, 2, "cosine", 1)
    names = [model.model_version for model in await models.list_models()]
    assert names == sorted(names)
    assert {"list-a", "list-b", "list-c"} <= set(names)
