"""The imports table's promises, on every emulator: one owner, a limit, a report that fits."""

import asyncio

import msgspec
import pytest

from core.dynamo.client import Dynamo
from core.errors import ImportEnded, LeaseLost, ModelBeingDeleted, NotFound, TooManyImports
from core.models import BadRow, Import, ImportParameters, ImportProgress, Model, now, timestamp
from core.repositories.imports import ImportRepository, ImportState
from core.repositories.leased_rows import new_id
from core.repositories.models import ModelRepository
from core.settings import Settings


@pytest.fixture
def imports(dynamo: Dynamo, settings: Settings) -> ImportRepository:
    """The repository under test, for up to two open imports of a model version."""
    limited = msgspec.structs.replace(settings.imports, imports_open_max=2)
    return ImportRepository(dynamo, msgspec.structs.replace(settings, imports=limited))


async def opened(imports: ImportRepository, model: Model, status: str = "queued") -> Import:
    """A new import."""
    row = msgspec.convert(
        {
            "import_id": new_id(),
            "model_version": model.model_version,
            "status": status,
            "requested_at": timestamp(now()),
            "parameters": ImportParameters("environments/dev/imports/a"),
            "type": "import",
        },
        Import,
    )
    await imports.open_import(row, model)
    return row


async def test_an_import_from_its_request_to_its_end(
    imports: ImportRepository, model: Model
) -> None:
    """One of several workers claims it; how far it is, and its bad rows, can be read."""
    row = await opened(imports, model)
    claims = await asyncio.gather(
        *(imports.claim(row.import_id, 0) for _ in range(4)), return_exceptions=True
    )
    (claimed,) = (each for each in claims if isinstance(each, Import))
    state = ImportState(ImportProgress("store", 3, 9, "rows"), 3, 2, 1, model.generation)
    await imports.beat(claimed, state)
    bad = [BadRow(2, "b", "vector is null")]
    await imports.write_bad_rows(claimed, bad)
    found = await imports.get_import(row.import_id)
    assert (found.progress, found.position) == (state.progress, 3)
    assert (found.rows_stored, found.rows_bad, found.generation) == (2, 1, model.generation)
    assert await imports.get_bad_rows(row.import_id) == tuple(bad)
    assert row.import_id in {each.import_id for each in await imports.list_open()}
    await imports.end(claimed, "completed", state=state, bad_rows_key="k")
    await imports.end(claimed, "completed", state=state, bad_rows_key="k")  # the reply was lost
    ended = await imports.get_import(row.import_id)
    assert (ended.status, ended.bad_rows_key, ended.error) == ("completed", "k", None)
    assert row.import_id not in {each.import_id for each in await imports.list_open()}
    with pytest.raises(ImportEnded):
        await imports.cancel(row.import_id)
    await imports.remove(ended)
    assert await imports.get_bad_rows(row.import_id) == ()
    with pytest.raises(NotFound):
        await imports.get_import(row.import_id)


async def test_who_lost_an_import_writes_nothing(imports: ImportRepository, model: Model) -> None:
    """After its lease, or a cancellation, neither progress nor bad rows nor an end."""
    row = await opened(imports, model)
    stalled = await imports.claim(row.import_id, 0, lease_s=0.001)
    await asyncio.sleep(0.01)
    taken = await imports.claim(row.import_id, 1)
    for loser in (stalled, taken):
        if loser is taken:
            cancelled = await imports.cancel(row.import_id)
            assert (cancelled.status, cancelled.attempt) == ("cancelled", 2)
        for change in (
            imports.beat(loser, ImportState(ImportProgress("store"))),
            imports.write_bad_rows(loser, [BadRow(1, None, "late")]),
            imports.release(loser, "late", wait_s=0),
            imports.end(loser, "failed", "late"),
        ):
            with pytest.raises(LeaseLost):
                await change
    assert await imports.get_bad_rows(row.import_id) == ()


async def test_open_imports_are_limited(imports: ImportRepository, model: Model) -> None:
    """However many are requested together; one that has ended makes room."""
    asked = await asyncio.gather(
        *(opened(imports, model) for _ in range(4)), return_exceptions=True
    )
    there = [each for each in asked if isinstance(each, Import)]
    assert len(there) == 2
    assert sum(isinstance(each, TooManyImports) for each in asked) == 2
    await imports.cancel(there[0].import_id)
    await opened(imports, model)
    with pytest.raises(TooManyImports):
        await opened(imports, model)


async def test_an_import_waits_for_its_upload(imports: ImportRepository, model: Model) -> None:
    """Nobody can claim it before; it can end without one."""
    row = await opened(imports, model, "waiting")
    with pytest.raises(LeaseLost):
        await imports.claim(row.import_id, 0)
    queued = await imports.found(row, '"etag"', 7)
    assert (queued.status, queued.etag, queued.size_bytes) == ("queued", '"etag"', 7)
    with pytest.raises(LeaseLost):
        await imports.end(row, "failed", "nothing was uploaded")
    other = await opened(imports, model, "waiting")
    await imports.end(other, "failed", "nothing was uploaded")
    with pytest.raises(LeaseLost):
        await imports.found(other, '"etag"', 7)


async def test_imports_are_listed_newest_first(imports: ImportRepository, model: Model) -> None:
    """In pages, of one model version alone."""
    rows = [await opened(imports, model) for _ in range(2)]
    first, position = await imports.list_imports(model.model_version, limit=1)
    second, _ = await imports.list_imports(model.model_version, limit=1, position=position)
    assert [*first, *second] == rows[::-1]


async def test_no_import_into_what_is_being_deleted(
    imports: ImportRepository, models: ModelRepository, model: Model
) -> None:
    """Even if it was marked after the request read it."""
    await models.mark_model(msgspec.structs.replace(model, deleting_at=timestamp(now())))
    with pytest.raises(ModelBeingDeleted):
        await opened(imports, model)


async def test_what_is_no_import_is_not_found(imports: ImportRepository, model: Model) -> None:
    """Other items of the table have keys that no import has."""
    await opened(imports, model)
    with pytest.raises(NotFound):
        await imports.get_import(f"{model.model_version}#open")
