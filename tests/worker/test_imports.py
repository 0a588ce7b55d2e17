"""Imports through the API: what a worker makes of an object in the bucket."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import names
from core.errors import TableMissing
from core.models import Import, ImportParameters, Model
from core.queue import ImportJob
from core.resources import Resources
from core.settings import Settings
from core.usecases.embeddings import EmbeddingService
from tests.worker import processes
from tests.worker.work import lose_redis, work
from worker.context import open_context
from worker.importing.attempt import ImportAttempt

ROWS = 2500
DIMENSION = 4


def vectors(rows: int = ROWS) -> np.ndarray:
    """Some rows."""
    generator = np.random.default_rng(rows)
    return generator.standard_normal((rows, DIMENSION)).astype(np.float32)


def parquet(rows: int = ROWS) -> bytes:
    """A Parquet file with a price for each row."""
    ids = [f"p{row}" for row in range(rows)]
    columns = {"product_id": ids, "vector": list(vectors(rows)), "price": range(rows)}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def npz(rows: int = 3) -> bytes:
    """An npz file."""
    file = io.BytesIO()
    np.savez(file, product_ids=[f"p{row}" for row in range(rows)], vectors=vectors(rows))
    return file.getvalue()


async def put(resources: Resources, name: str, data: bytes) -> str:
    """Puts an object to import; its key."""
    key = f"{names.imports_prefix(resources.settings.environment)}{name}"
    await resources.objects.delete([key])
    await resources.objects.put(key, data)
    return key


async def requested(resources: Resources, model_version: str, data: bytes, **more: Any) -> Import:
    """An import of these bytes."""
    key = await put(resources, f"{model_version}/file", data)
    parameters = ImportParameters(key, **more)
    return await resources.import_service.request(model_version, parameters)


async def imported(resources: Resources, model_version: str, data: bytes, **more: Any) -> Import:
    """The end of an import of these bytes."""
    row = await requested(resources, model_version, data, **more)
    await work(resources.settings)
    return await resources.imports.get_import(row.import_id)


async def stored(resources: Resources, model_version: str) -> dict[str, bytes | None]:
    """The vectors of a model version by product id."""
    model: Model = await resources.models.get_model(model_version)
    found: dict[str, bytes | None] = {}
    async for page in resources.embeddings.get_embeddings_by_model(model):
        found |= {row.product_id: row.vector for row in page}
    return found


async def test_a_parquet_file_is_imported(resources: Resources, model_version: str) -> None:
    """Every row of it, with its attributes; it leaves nothing on the worker's disk."""
    ended = await imported(resources, model_version, parquet(), attributes=("price",))
    assert (ended.status, ended.error) == ("completed", None)
    assert (ended.rows_stored, ended.rows_bad, ended.position) == (ROWS, 0, ROWS)
    assert (ended.progress.done, ended.progress.total, ended.progress.unit) == (ROWS, ROWS, "rows")
    found = await stored(resources, model_version)
    assert found == {f"p{n}": each.tobytes() for n, each in enumerate(vectors())}
    model = await resources.models.get_model(model_version)
    assert model.has_attributes
    assert model.generation == ended.generation
    assert not list(resources.settings.building.work_dir.rglob(f"{ended.import_id}*"))


async def test_bad_rows_are_reported(resources: Resources, model_version: str) -> None:
    """As `k9 import` reports them; the others are stored, and all bad ones are in the file."""
    lines = [
        {"product_id": "a", "vector": [1, 2]},
        {"product_id": "b", "vector": [1, 2, 3]},
        {"product_id": "c", "vector": [0, 0]},
        {"product_id": "", "vector": [1, 2]},
        {"product_id": "a", "vector": [3, 4]},
        {"product_id": "d", "vector": [1, 2], "price": {"no": "number"}},
        {"product_id": "e" * 400, "vector": "x" * 400},
        {"product_id": "f", "vector": [5, 6], "price": 1},
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode() + b"{broken\n"
    ended = await imported(resources, model_version, data, attributes=("price",))
    assert (ended.status, ended.rows_stored, ended.rows_bad) == ("completed", 2, 7)
    assert (await stored(resources, model_version)).keys() == {"a", "f"}
    first = await resources.imports.get_bad_rows(ended.import_id)
    assert [row.number for row in first] == [2, 3, 4, 5, 6, 7, 9]
    assert first[0].reason == "vector has 3 numbers, the model version has 2"
    assert first[3].reason == "product_id came before in this file"
    report = await resources.objects.get_bytes(ended.bad_rows_key or "", 10**6)
    assert [json.loads(line)["number"] for line in report.splitlines()] == [2, 3, 4, 5, 6, 7, 9]


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        (b"a,b\n1,2\n", {}, "is CSV or the like"),
        (b"PAR1 and no more", {}, "cannot be read"),
        (b'{"id": "a", "vector": [1]}\n', {}, "say which it is by id_column id"),
        (b"[]", {}, "has no rows"),
        (npz(), {"attributes": ("price",)}, "has no 'price'"),
    ],
)
async def test_a_file_that_cannot_be_read_fails_in_a_line(
    resources: Resources, model_version: str, data: bytes, more: dict[str, Any], words: str
) -> None:
    """It says why, in the words of the request."""
    ended = await imported(resources, model_version, data, **more)
    assert ended.status == "failed"
    assert words in (ended.error or "")
    assert "\n" not in (ended.error or "")
    assert str(resources.settings.building.work_dir) not in (ended.error or "")


async def test_text_of_an_array_that_is_no_unicode_is_a_bad_row(
    resources: Resources, model_version: str
) -> None:
    """Arrays of numpy may hold lone surrogates: the row is named by an escape, the others stay."""
    file = io.BytesIO()
    ids = np.array(["a", "\ud800b", "c"])
    prices = np.array(["1", "2", "\ud800"])
    np.savez(file, product_ids=ids, vectors=vectors(3), price=prices)
    ended = await imported(resources, model_version, file.getvalue(), attributes=("price",))
    assert (ended.status, ended.error, ended.rows_stored) == ("completed", None, 1)
    bad = await resources.imports.get_bad_rows(ended.import_id)
    assert [(row.number, row.product_id) for row in bad] == [(2, "\\ud800b"), (3, "c")]
    assert bad[0].reason == "product_id is not valid Unicode"


async def test_a_long_error_is_cut(resources: Resources, model_version: str) -> None:
    """A type that takes more to tell than a row of DynamoDB has fails the import at once."""
    members = [(f"a_member_with_a_long_name_{n:06d}", pa.int8()) for n in range(16_000)]
    file = io.BytesIO()
    ids = pa.array([None], type=pa.struct(members))
    pq.write_table(pa.table({"product_id": ids, "vector": [[1.0]]}), file)
    ended = await imported(resources, model_version, file.getvalue())
    assert (ended.status, ended.attempt) == ("failed", 1)
    assert "'product_id' is of type struct<" in (ended.error or "")
    assert len((ended.error or "").encode()) < 1100


async def test_the_last_fault_ends_an_import_with_its_report(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bad rows are told, and its reason names no table."""

    async def store_batch(*_: Any, **__: Any) -> Any:
        raise TableMissing("there is no table k9-x", public="a table is missing")

    lines = b'{"product_id": "", "vector": [1]}\n' * 1000 + b'{"product_id": "a", "vector": [1]}\n'
    row = await requested(resources, model_version, lines)
    monkeypatch.setattr(EmbeddingService, "store_batch", store_batch)
    building = msgspec.structs.replace(resources.settings.building, build_attempts_max=1)
    await work(msgspec.structs.replace(resources.settings, building=building))
    ended = await resources.imports.get_import(row.import_id)
    assert (ended.status, ended.rows_bad) == ("failed", 1000)
    assert ended.error == "gave up after 1 attempts: a table is missing"
    report = await resources.objects.get_bytes(ended.bad_rows_key or "", 10**6)
    assert len(report.splitlines()) == 1000


async def test_faults_with_progress_between_them_do_not_end_an_import(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file may meet more faults than an import may have in a row."""
    before = EmbeddingService.store_batch

    async def store_batch(
        self: EmbeddingService, name: str, rows: Any, *args: Any, **more: Any
    ) -> Any:
        if rows[0][0] != "p0":
            raise TableMissing("there is no table")
        return await before(self, name, rows, *args, **more)

    monkeypatch.setattr(EmbeddingService, "store_batch", store_batch)
    row = await requested(resources, model_version, parquet())
    claimed = await resources.imports.claim(row.import_id, 0)
    last = resources.settings.building.build_attempts_max - 1
    await ImportAttempt(resources, msgspec.structs.replace(claimed, faults=last)).run()
    left = await resources.imports.get_import(row.import_id)
    assert (left.open, left.faults) == (True, 1)
    await resources.imports.cancel(row.import_id)
    await work(resources.settings)


async def test_an_object_that_changes_is_not_imported(
    resources: Resources, model_version: str
) -> None:
    """What was there at the request is imported, or nothing."""
    row = await requested(resources, model_version, npz())
    await put(resources, f"{model_version}/file", npz(4))
    await work(resources.settings)
    ended = await resources.imports.get_import(row.import_id)
    assert ended.status == "failed"
    assert ended.error == f"{row.parameters.key}: has changed since the import was requested"


async def test_rows_that_an_earlier_model_left_are_replaced(
    resources: Resources, model_version: str
) -> None:
    """A late write to a deleted model version of the same name stops no import."""
    model = await resources.models.create_model(model_version, DIMENSION, "cosine", 4)
    earlier = msgspec.structs.replace(model, generation=model.generation - 1)
    await resources.embeddings.store_embedding(earlier, "p1", b"\0" * 4 * DIMENSION)
    ended = await imported(resources, model_version, parquet(3), attributes=("price",))
    assert (ended.status, ended.rows_stored, ended.error) == ("completed", 3, None)
    assert (await stored(resources, model_version))["p1"] == vectors(3)[1].tobytes()


@asynccontextmanager
async def halted(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Import, list[str], asyncio.Event]]:
    """An import in the middle: its first batch is stored, and the following ones wait.

    Gives it, the first ids of the batches that were written, and what lets the others go on.
    """
    written: list[str] = []
    go_on = asyncio.Event()
    before = EmbeddingService.store_batch

    async def store_batch(
        self: EmbeddingService, name: str, rows: Any, *args: Any, **more: Any
    ) -> Any:
        if written:
            await go_on.wait()
        written.append(rows[0][0])
        return await before(self, name, rows, *args, **more)

    monkeypatch.setattr(EmbeddingService, "store_batch", store_batch)
    yield await requested(resources, model_version, parquet()), written, go_on


async def at_position(resources: Resources, import_id: str, position: int) -> Import:
    """The import, once it has written that it is there."""
    async with asyncio.timeout(30):
        while (  # noqa: ASYNC110 - a worker writes it
            row := await resources.imports.get_import(import_id)
        ).position < position:
            await asyncio.sleep(0.05)
    return row


async def test_a_worker_that_stops_hands_over(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one writes only what was not stored, and its counts are those of the whole file."""
    async with halted(resources, model_version, monkeypatch) as (row, written, go_on):
        async with open_context(settings, reconcile=False) as context:
            assert await context.importer.start(ImportJob.of(row))
            await at_position(resources, row.import_id, 1000)
        go_on.set()
        async with open_context(settings, reconcile=False) as context:
            left = await resources.imports.get_import(row.import_id)
            assert await context.importer.start(ImportJob.of(left))
            await context.importer.drain()
    ended = await resources.imports.get_import(row.import_id)
    assert (ended.status, ended.rows_stored, ended.attempt) == ("completed", ROWS, 2)
    assert sorted(written) == ["p0", "p1000", "p2000"]
    assert len(await stored(resources, model_version)) == ROWS


async def test_a_cancelled_import_stops(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next heartbeat; what was stored stays."""
    building = msgspec.structs.replace(settings.building, heartbeat_s=0.1)
    async with (
        halted(resources, model_version, monkeypatch) as (row, _, _),
        open_context(
            msgspec.structs.replace(settings, building=building), reconcile=False
        ) as context,
    ):
        assert await context.importer.start(ImportJob.of(row))
        await at_position(resources, row.import_id, 1000)
        await resources.imports.cancel(row.import_id)
        async with asyncio.timeout(10):
            await context.importer.drain()
    ended = await resources.imports.get_import(row.import_id)
    assert (ended.status, ended.rows_stored) == ("cancelled", 1000)
    assert len(await stored(resources, model_version)) == 1000


async def test_a_name_that_was_made_anew_gets_no_rows(
    resources: Resources, model_version: str
) -> None:
    """An import that has stored rows of one model version stores none of a later one."""
    row = await requested(resources, model_version, npz())
    claimed = await resources.imports.claim(row.import_id, 0)
    await resources.models.create_model(model_version, DIMENSION, "cosine", 4)
    attempt = ImportAttempt(resources, msgspec.structs.replace(claimed, generation=1))
    await attempt.run()
    ended = await resources.imports.get_import(row.import_id)
    assert ended.status == "failed"
    assert "was deleted and created again" in (ended.error or "")
    assert not await stored(resources, model_version)


async def test_a_killed_worker_loses_nothing(
    resources: Resources, model_version: str, settings: Settings, tmp_path: Path
) -> None:
    """SIGKILL in the middle, and all of Redis lost: another one goes on where it was."""
    rows = 12_000
    row = await requested(resources, model_version, parquet(rows))
    async with processes.running(settings) as process:
        killed = await at_position(resources, row.import_id, 1000)
        process.kill()
        await process.wait()
    await lose_redis(resources)
    assert killed.position < rows
    async with processes.running(settings):
        await at_position(resources, row.import_id, rows)
        async with asyncio.timeout(30):
            while (  # noqa: ASYNC110 - a worker writes it
                ended := await resources.imports.get_import(row.import_id)
            ).open:
                await asyncio.sleep(0.1)
    assert (ended.status, ended.rows_stored, ended.rows_bad) == ("completed", rows, 0)
    assert ended.attempt == 2
    assert len(await stored(resources, model_version)) == rows
