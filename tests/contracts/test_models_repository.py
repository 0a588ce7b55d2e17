"""The models table's promises, on every emulator."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from core.dynamo.client import open_dynamo
from core.errors import ModelBeingDeleted, NotFound
from core.models import now, timestamp
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


async def test_the_names_of_internal_attributes_stay_through_other_writes(
    models: ModelRepository, settings: Settings
) -> None:
    """Also of a process that read the record before; of two changes the later one holds."""
    before = await models.create_model("internal", 3, "cosine", 8)
    await models.set_internal_attributes(before, ["cost", "supplier"])
    await models.note_attributes(before)
    found = await models.get_model("internal")
    assert (found.internal_attributes, found.has_attributes) == (("cost", "supplier"), True)
    await models.set_internal_attributes(before, [])
    assert (await models.get_model("internal")).internal_attributes == ()
    await models.set_internal_attributes(found, ["margin"])
    async with open_dynamo(settings) as dynamo:
        listed = await ModelRepository(dynamo, settings).list_models()
    names = [model.internal_attributes for model in listed if model.model_version == "internal"]
    assert names == [("margin",)]


async def test_internal_attributes_are_set_in_no_other_generation(models: ModelRepository) -> None:
    """Nor where there is no record, nor in one that is marked for deletion."""
    model = await models.create_model("internal-gone", 3, "cosine", 8)
    earlier = msgspec.structs.replace(model, generation=model.generation - 1)
    absent = msgspec.structs.replace(model, model_version="internal-never")
    for other in (earlier, absent):
        with pytest.raises(NotFound):
            await models.set_internal_attributes(other, ["cost"])
    await models.mark_model(msgspec.structs.replace(model, deleting_at=timestamp(now())))
    with pytest.raises(ModelBeingDeleted):
        await models.set_internal_attributes(model, ["cost"])
    assert (await models.find_model("internal-gone")).internal_attributes == ()


async def test_every_model_is_listed_by_name(models: ModelRepository) -> None:
    """A listing holds each model version once, sorted."""
    for name in ("list-b", "list-a", "list-c"):
        await models.create_model(name, 2, "cosine", 1)
    names = [model.model_version for model in await models.list_models()]
    assert names == sorted(names)
    assert {"list-a", "list-b", "list-c"} <= set(names)
