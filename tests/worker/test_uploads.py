"""Objects that are uploaded for imports: found by the reconciler, and removed after their time."""

import asyncio
import hashlib
import time

import aiohttp
import pytest
from structlog.testing import capture_logs

from core import names
from core.errors import TableMissing
from core.models import Import, ImportParameters, UploadTerms
from core.resources import Resources
from tests.worker.test_imports import npz
from tests.worker.work import reconciled, work
from worker.background import Background
from worker.importing.attempt import ImportRunner
from worker.importing.uploads import remove_old_uploads
from worker.reconcile import reconcile_imports


async def test_a_table_that_is_not_there_stops_no_round(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may come before the table: it says so once, and fails no round."""

    async def list_open() -> list[Import]:
        raise TableMissing("DynamoDB has no such table")

    monkeypatch.setattr(resources.imports, "list_open", list_open)
    importer = ImportRunner(resources)
    with capture_logs() as lines:
        for _ in range(2):
            assert await reconcile_imports(resources, importer, Background()) == 0
    assert [line["event"] for line in lines] == ["imports cannot be read"]


async def test_an_upload_is_imported_once_it_is_there(
    resources: Resources, model_version: str
) -> None:
    """The address takes what was announced; the worker's next round finds it."""
    data = npz()
    terms = UploadTerms(len(data), hashlib.sha256(data).hexdigest())
    row = await resources.import_service.request(model_version, ImportParameters(""), terms)
    assert await reconciled(resources) >= 1
    assert (await resources.imports.get_import(row.import_id)).status == "waiting"
    address = await resources.import_service.upload_address(row)
    assert address is not None
    assert "content-length" in address.url
    assert "x-amz-checksum-sha256" in address.url
    async with (
        aiohttp.ClientSession() as session,
        session.put(address.url, data=data, headers=address.headers) as reply,
    ):
        assert reply.status == 200, await reply.text()
    await reconciled(resources)
    await work(resources.settings)
    ended = await resources.imports.get_import(row.import_id)
    assert (ended.status, ended.rows_stored, ended.error) == ("completed", 3, None)


async def test_no_round_waits_for_an_upload(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While S3 does not answer, builds and deletions are found as ever."""
    terms = UploadTerms(3, "0" * 64)
    await resources.import_service.request(model_version, ImportParameters(""), terms)
    monkeypatch.setattr(resources.objects, "head", lambda _: asyncio.Event().wait())
    background = Background()
    async with asyncio.timeout(10):
        assert await reconcile_imports(resources, ImportRunner(resources), background) >= 1
    await background.close()


async def test_an_upload_that_does_not_come_fails(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time, by a reason that says so."""
    terms = UploadTerms(3, "0" * 64)
    row = await resources.import_service.request(model_version, ImportParameters(""), terms)
    monkeypatch.setattr("worker.importing.uploads.UPLOAD_S", -60)
    await reconciled(resources)
    ended = await resources.imports.get_import(row.import_id)
    assert ended.status == "failed"
    assert "nothing was uploaded" in (ended.error or "")


async def test_old_uploads_are_removed(resources: Resources) -> None:
    """By the time in their names; younger ones, and what is somebody else's, stay."""
    environment = resources.settings.environment
    day_ms = 86_400_000
    ages = {days: f"{time.time_ns() // 10**6 - days * day_ms:012x}{'a' * 20}" for days in (6, 8)}
    keys = [names.upload_key(environment, each) for each in (*ages.values(), "mine.parquet")]
    for key in keys:
        await resources.objects.put(key, b"x")
    assert await remove_old_uploads(resources) == 1
    left = await resources.objects.list_keys(names.uploads_prefix(environment))
    assert set(keys) & set(left) == {keys[0], keys[2]}
