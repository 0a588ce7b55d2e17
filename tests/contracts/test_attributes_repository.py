"""Attributes in the embeddings table, on every emulator: what is kept, what it costs, and races."""

import asyncio
import math
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from core.attributes.values import Attributes
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import key
from core.errors import Corrupt, Invalid, NotFound, OtherGeneration
from core.models import Model, StoredAttributes
from core.repositories.attributes import AttributeRepository
from core.repositories.embedding_rows import live_row
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import Claim, IdempotencyRepository
from core.repositories.models import ModelRepository
from core.settings import Settings
from tests.contracts.attributes import Watched, claimed, found, items_of, service_of
from tests.contracts.test_embeddings_repository import pulled, vector


@pytest.fixture
def embeddings(dynamo: Dynamo, settings: Settings) -> EmbeddingRepository:
    """The rows that have attributes."""
    return EmbeddingRepository(dynamo, settings)


@pytest.fixture
def attributes(dynamo: Dynamo, settings: Settings) -> AttributeRepository:
    """The repository under test."""
    return AttributeRepository(dynamo, settings)


@pytest.fixture
async def model(models: ModelRepository) -> Model:
    """A model version of this test's own, noted to have attributes."""
    return await models.note_attributes(
        await models.create_model(f"a-{uuid4().hex[:12]}", 2, "cosine", 4)
    )


async def test_changes_are_read_by_id_and_by_time(
    embeddings: EmbeddingRepository, attributes: AttributeRepository, model: Model
) -> None:
    """More than one call takes, and those that were deleted; of this generation alone."""
    ids = [f"p{number:03d}" for number in range(120)]
    await embeddings.store_batch(
        model, [(name, vector(1, 2)) for name in ids], attributes={name: {"n": 1} for name in ids}
    )
    before = await attributes.read_attributes(model, [*ids, "none"])
    assert {each.product_id: each.text for each in before} == dict.fromkeys(ids, '{"n":1}')
    since = max(each.updated_at for each in before)
    changed = await attributes.patch_attributes(model, "p007", {"n": 2})
    await embeddings.delete_embedding(model, "p008")
    assert not any(each.alone for each in before)
    (one,) = await attributes.read_attributes(model, ["p007"])
    assert (one.text, one.updated_at, one.alone) == ('{"n":2}', changed.updated_at, True)
    (gone,) = await attributes.read_attributes(model, ["p008"])
    assert gone.text == ""
    shown = await _since(attributes, model, since)
    assert sorted(shown, key=lambda each: each.product_id) == [one, gone]
    assert {each.product_id for each in await _since(attributes, model, "")} == set(ids)
    later = msgspec.structs.replace(model, generation=model.generation + 1)
    assert await attributes.read_attributes(later, ids) == []
    assert await _since(attributes, later, "") == []


async def _since(
    attributes: AttributeRepository, model: Model, moment: str
) -> list[StoredAttributes]:
    return [each async for page in attributes.changed_since(model, moment) for each in page]


async def test_a_patch_changes_what_it_names(
    embeddings: EmbeddingRepository, attributes: AttributeRepository, model: Model
) -> None:
    """Names are set, replaced and removed; the vector and all other names stay."""
    await embeddings.store_embedding(model, "p", vector(1, 2))
    assert await found(embeddings, model, "p") == {}
    first = await attributes.patch_attributes(
        model, "p", {"price": 1e308, "stock": True, "tags": ["a", "b"], "n": 9}
    )
    assert await found(embeddings, model, "p") == first.attributes
    second = await attributes.patch_attributes(model, "p", {"price": 0.1, "tags": None, "x": None})
    assert second.attributes == {"price": 0.1, "stock": True, "n": 9}
    assert await found(embeddings, model, "p") == second.attributes
    read = await embeddings.get_embedding(model.model_version, "p")
    assert (read.vector, read.updated_at) == (vector(1, 2), second.updated_at)
    assert (second.watermark.moment, second.watermark.product_id) == (second.updated_at, "p")


async def test_a_store_keeps_replaces_or_clears_attributes(
    dynamo: Dynamo, settings: Settings, embeddings: EmbeddingRepository, model: Model
) -> None:
    """Absent they stay, `{}` clears them; one row or a batch, with a key or without."""
    for claim in (None, await claimed(dynamo, settings)):
        await embeddings.store_embedding(model, "p", vector(1, 2), claim, {"a": 1, "b": "x"})
        await embeddings.store_embedding(model, "p", vector(3, 4))
        assert await found(embeddings, model, "p") == {"a": 1, "b": "x"}
        await embeddings.store_batch(model, [("p", vector(5, 6))])
        assert await found(embeddings, model, "p") == {"a": 1, "b": "x"}
        await embeddings.store_embedding(model, "p", vector(7, 8), None, {})
        assert await found(embeddings, model, "p") == {}
    for claim in (None, await claimed(dynamo, settings)):
        rows = [(f"b{n}", vector(n, 1)) for n in range(60)]
        own: dict[str, Attributes] = {f"b{n}": {"n": n} for n in range(0, 60, 2)}
        assert await embeddings.store_batch(model, rows, claim=claim, attributes=own) == []
        assert await embeddings.store_batch(model, [rows[0]], attributes={"b0": {}}) == []
        assert await found(embeddings, model, "b0") == {}
        assert await found(embeddings, model, "b1") == {}
        assert await found(embeddings, model, "b58") == {"n": 58}
        assert (await embeddings.get_embedding(model.model_version, "b59")).vector == rows[59][1]


async def test_a_batch_under_a_key_is_continued_where_it_ended(
    dynamo: Dynamo, settings: Settings, embeddings: EmbeddingRepository, model: Model
) -> None:
    """What was written in an earlier try is not written again, and the rest is."""
    claim = await claimed(dynamo, settings)
    rows = [(f"b{n}", vector(n, 1)) for n in range(60)]
    own: dict[str, Attributes] = {name: {"try": 1} for name, _ in rows}
    assert await embeddings.store_batch(model, rows[:49], claim=claim, attributes=own) == []
    await embeddings.store_embedding(model, "b0", vector(9, 9), None, {"try": 2})
    prefix = f"{model.generation}_" if model.generation else ""
    again = msgspec.structs.replace(claim, checkpoints=frozenset({f"{prefix}0"}))
    assert await embeddings.store_batch(model, rows, claim=again, attributes=own) == []
    assert await found(embeddings, model, "b0") == {"try": 2}
    assert await found(embeddings, model, "b59") == {"try": 1}


async def test_patches_at_once_lose_nothing(
    dynamo: Dynamo,
    settings: Settings,
    embeddings: EmbeddingRepository,
    attributes: AttributeRepository,
    model: Model,
) -> None:
    """Each of many callers that change the same product at the same time is in the result."""
    await embeddings.store_embedding(model, "p", vector(1, 2), None, {"kept": True})
    keyed = [await claimed(dynamo, settings) for _ in range(4)]
    claims = [*keyed, *[None] * 8]
    await asyncio.gather(
        *(
            attributes.patch_attributes(model, "p", {f"n{n}": n}, claim)
            for n, claim in enumerate(claims)
        )
    )
    expected = {"kept": True, **{f"n{n}": n for n in range(len(claims))}}
    assert await found(embeddings, model, "p") == expected


async def test_a_patch_revives_nothing(
    embeddings: EmbeddingRepository, attributes: AttributeRepository, model: Model
) -> None:
    """There is nothing to change where no row is, or none any more, and nothing comes back."""
    with pytest.raises(NotFound):
        await attributes.patch_attributes(model, "never", {"a": 1})
    await embeddings.store_embedding(model, "gone", vector(1, 2), None, {"a": 1})
    await embeddings.delete_embedding(model, "gone")
    with pytest.raises(NotFound):
        await attributes.patch_attributes(model, "gone", {"b": 1})
    with pytest.raises(NotFound):
        await embeddings.get_embedding(model.model_version, "gone")
    assert [row.product_id for row in await pulled(embeddings, model)] == ["gone"]
    assert (await embeddings.store_embedding(model, "gone", vector(1, 2))).created
    assert await found(embeddings, model, "gone") == {}
    patched = await attributes.patch_attributes(model, "gone", {"c": 3})
    assert patched.attributes == {"c": 3}


@pytest.mark.parametrize("had", [None, {"a": 1}], ids=["none", "some"])
@pytest.mark.parametrize("keyed", [False, True])
async def test_a_patch_that_a_deletion_overtakes_writes_nothing(
    dynamo: Dynamo,
    settings: Settings,
    embeddings: EmbeddingRepository,
    model: Model,
    had: Attributes | None,
    *,
    keyed: bool,
) -> None:
    """The row is deleted between its read and the write; made anew it has no attributes."""
    await embeddings.store_embedding(model, "p", vector(1, 2), None, had)
    watched = Watched(dynamo, lambda: embeddings.delete_embedding(model, "p"))
    claim = await claimed(dynamo, settings) if keyed else None
    with pytest.raises(NotFound):
        await AttributeRepository(watched, settings).patch_attributes(model, "p", {"b": 2}, claim)
    await embeddings.store_embedding(model, "p", vector(1, 2))
    assert await found(embeddings, model, "p") == {}


async def test_a_deletion_without_attributes_writes_the_row_alone(
    dynamo: Dynamo, settings: Settings, models: ModelRepository
) -> None:
    """No transaction, which costs twice as much, and no second item."""
    plain = await models.create_model(f"a-{uuid4().hex[:12]}", 2, "cosine", 4)
    watched = Watched(dynamo)
    service = service_of(watched, settings, ModelRepository(dynamo, settings))
    await service.embeddings.store_embedding(plain, "p", vector(1, 2))
    watched.operations.clear()
    await service.delete_embedding(plain.model_version, "p")
    assert watched.operations == ["update_item"]
    with pytest.raises(NotFound):
        await service.delete_embedding(plain.model_version, "p")
    (tombstone,) = await items_of(dynamo, settings, plain)
    assert "deleted_at" in tombstone


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("overtaken", [False, True], ids=["before", "while it is written"])
async def test_first_attributes_go_with_a_row_that_a_process_deletes_without_knowing_of_them(
    dynamo: Dynamo,
    settings: Settings,
    models: ModelRepository,
    embeddings: EmbeddingRepository,
    *,
    overtaken: bool,
    keyed: bool,
) -> None:
    """Its record of the model version is seconds old; stored again, the row has no attributes."""
    fresh = await models.create_model(f"a-{uuid4().hex[:12]}", 2, "cosine", 4)
    await embeddings.store_embedding(fresh, "p", vector(1, 2))
    deleting = service_of(dynamo, settings, ModelRepository(dynamo, settings))
    assert not (await deleting.models.known_model(fresh.model_version)).has_attributes
    claim = await claimed(dynamo, settings) if keyed else None

    async def delete() -> None:
        await deleting.delete_embedding(fresh.model_version, "p", claim)

    watched = Watched(dynamo, delete if overtaken else None)
    patching = service_of(watched, settings, models)
    if overtaken:
        with pytest.raises(NotFound):
            await patching.patch_attributes(fresh.model_version, "p", {"a": 1})
    else:
        await patching.patch_attributes(fresh.model_version, "p", {"a": 1})
        await delete()
    await embeddings.store_embedding(fresh, "p", vector(1, 2))
    noted = await models.get_model(fresh.model_version)
    assert noted.has_attributes
    assert await found(embeddings, noted, "p") == {}


async def test_a_patch_under_a_key_is_made_once(
    dynamo: Dynamo,
    settings: Settings,
    embeddings: EmbeddingRepository,
    attributes: AttributeRepository,
    model: Model,
) -> None:
    """Its result is stored with it, and answers a retry after other changes too."""
    records, caller = IdempotencyRepository(dynamo, settings), uuid4().hex
    await embeddings.store_embedding(model, "p", vector(1, 2))
    claim = await records.begin(caller, "key", "f")
    assert isinstance(claim, Claim)
    patched = await attributes.patch_attributes(model, "p", {"a": 1}, claim)
    await attributes.patch_attributes(model, "p", {"a": 2})
    again = await records.begin(caller, "key", "f")
    assert not isinstance(again, Claim)
    assert getattr(again, "result", None) == patched


async def test_a_patch_costs_the_same_at_every_dimension(
    dynamo: Dynamo, settings: Settings, models: ModelRepository
) -> None:
    """A change of a price is one item of one write unit, however long the vector is."""
    units = []
    for dimension in (384, 4096):
        model = await models.create_model(f"a-{uuid4().hex[:12]}", dimension, "cosine", 4)
        watched = Watched(dynamo)
        embeddings = EmbeddingRepository(watched, settings)
        floats = np.ones(dimension, "<f4").tobytes()
        own: Attributes = {"price": 10.5, "stock": 3, "brand": "acme", "tags": ["a", "b"]}
        await embeddings.store_embedding(model, "p", floats, None, own)
        assert watched.write_units()[0] == math.ceil((4 * dimension + 200) / 1024)
        watched.written.clear()
        await AttributeRepository(watched, settings).patch_attributes(model, "p", {"price": 9.5})
        units.append(watched.write_units())
    assert units == [[1], [1]]


async def test_attributes_are_within_the_limits_after_a_patch(
    embeddings: EmbeddingRepository, attributes: AttributeRepository, model: Model
) -> None:
    """Changes that are valid alone are refused where all of them are too many."""
    full: Attributes = {f"n{n}": n for n in range(64)}
    await embeddings.store_embedding(model, "p", vector(1, 2), None, full)
    with pytest.raises(Invalid, match="has 65 names, the most is 64"):
        await attributes.patch_attributes(model, "p", {"one_more": 1})
    assert await found(embeddings, model, "p") == full
    await attributes.patch_attributes(model, "p", {"n0": None, "one_more": 1})
    assert len(await found(embeddings, model, "p")) == 64


async def test_releases_without_attributes_see_no_row_more_and_wipe_none(
    dynamo: Dynamo, settings: Settings, embeddings: EmbeddingRepository, model: Model
) -> None:
    """Their puts, which replace a row whole, leave the attributes; their queries find rows only."""
    await embeddings.store_embedding(model, "p", vector(1, 2), None, {"a": 1})
    moment = "2099-01-01T00:00:00.000000Z"
    await dynamo.call(
        "put_item",
        TableName=settings.table(tables.EMBEDDINGS.name),
        Item=live_row(model, "p", vector(3, 4), moment),
    )
    assert await found(embeddings, model, "p") == {"a": 1}
    assert [row.vector for row in await pulled(embeddings, model)] == [vector(3, 4)]
    assert [row.product_id for row in await embeddings.read_rows(model.model_version, ["p"])] == [
        "p"
    ]
    await embeddings.delete_embedding(model, "p")
    assert not await embeddings.has_rows(model)


async def test_attributes_show_in_no_later_model(
    embeddings: EmbeddingRepository, attributes: AttributeRepository, model: Model
) -> None:
    """Neither those that an earlier model version of the name left, nor a late change of them."""
    later = msgspec.structs.replace(model, generation=model.generation + 10**6)
    await embeddings.store_embedding(model, "p", vector(1, 2), None, {"earlier": 1})
    rows = await embeddings.read_rows(model.model_version, ["p"])
    assert await embeddings.remove_rows(rows) == 1
    await embeddings.store_embedding(later, "p", vector(3, 4))
    assert await found(embeddings, later, "p") == {}
    with pytest.raises(NotFound):
        await attributes.patch_attributes(model, "p", {"late": 1})
    with pytest.raises(OtherGeneration):
        await embeddings.store_batch(model, [("p", vector(1, 2))], attributes={"p": {"late": 1}})
    assert (await attributes.patch_attributes(later, "p", {"own": 1})).attributes == {"own": 1}
    assert await found(embeddings, later, "p") == {"own": 1}


async def test_nothing_is_left_of_what_is_removed(
    dynamo: Dynamo,
    settings: Settings,
    embeddings: EmbeddingRepository,
    attributes: AttributeRepository,
    model: Model,
) -> None:
    """Tombstones go with those of their rows, and attributes with their model version."""
    for n in range(9):
        await embeddings.store_embedding(model, f"p{n}", vector(n, 1), None, {"n": n})
    gone = await embeddings.delete_embedding(model, "p3")
    assert await embeddings.remove_tombstones(model.model_version, {"p3": gone.deleted_at}) == 1
    assert len(await items_of(dynamo, settings, model)) == 16
    other = msgspec.structs.replace(model, generation=model.generation + 1)
    assert [page async for page in attributes.keys_by_model(other)] == []
    pages = [page async for page in attributes.keys_by_model(model)]
    assert sum([await attributes.remove(page) for page in pages]) == 8
    await embeddings.remove_rows(await pulled(embeddings, model))
    assert await items_of(dynamo, settings, model) == []


async def test_attributes_that_cannot_be_read_stop_no_other_row(
    dynamo: Dynamo,
    settings: Settings,
    embeddings: EmbeddingRepository,
    attributes: AttributeRepository,
    model: Model,
) -> None:
    """A list goes on without them; the row alone, and a change of it, say what is wrong."""
    for name in ("good", "bad"):
        await embeddings.store_embedding(model, name, vector(1, 2), None, {"a": 1})
    table = settings.table(tables.EMBEDDINGS.name)
    where = key(product_id="bad", model_version=tables.attributes_name(model.model_version))
    item = (await dynamo.call("get_item", TableName=table, Key=where))["Item"]
    await dynamo.call("put_item", TableName=table, Item={**item, "attributes": {"S": "{"}})
    listed, _ = await embeddings.list_embeddings(model, limit=10)
    assert {row.product_id: row.attributes for row in listed} == {"good": {"a": 1}, "bad": None}
    with pytest.raises(Corrupt):
        await embeddings.get_embedding(model.model_version, "bad")
    with pytest.raises(Corrupt):
        await attributes.patch_attributes(model, "bad", {"b": 1})
    await embeddings.store_embedding(model, "bad", vector(1, 2), None, {"b": 1})
    assert await found(embeddings, model, "bad") == {"b": 1}


async def test_a_model_version_is_noted_to_have_attributes_once(models: ModelRepository) -> None:
    """Every process learns of it; a deleted model version, or a later one, is not changed."""
    fresh = await models.create_model(f"a-{uuid4().hex[:12]}", 2, "cosine", 4)
    assert not fresh.has_attributes
    noted = await models.note_attributes(fresh)
    assert noted.has_attributes
    assert await models.note_attributes(noted) is noted
    assert (await models.find_model(fresh.model_version)) == noted
    earlier = msgspec.structs.replace(fresh, generation=fresh.generation - 1)
    with pytest.raises(OtherGeneration):
        await models.note_attributes(earlier)
    unknown = msgspec.structs.replace(fresh, model_version="a-never")
    with pytest.raises(NotFound):
        await models.note_attributes(unknown)
