"""An environment whose tables were copied from another's, so that it serves the other's files."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from api.app import create_app
from api.serving import probes
from core.names import environment_prefix
from core.settings import Settings
from core.versions import VersionRecord
from tests.api.pool import Pool
from tests.api.serving import build_here, client_of, eventually, path_of, started, vector
from tests.api.shop import until
from tests.worker.two_environments import Pair, open_pair, record_of

MODEL = "m-borrowed"
ROWS = 20


@pytest.fixture
async def pair(
    api_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Pair]:
    """A source with a published build, and an environment with copies of all its rows."""
    monkeypatch.setattr(probes, "_INTERVAL_S", 0.1)
    serving = msgspec.structs.replace(api_settings.serving, cache_dir=tmp_path / "cache")
    building = msgspec.structs.replace(api_settings.building, work_dir=tmp_path / "work")
    settings = msgspec.structs.replace(api_settings, serving=serving, building=building)
    async with open_pair(settings) as opened:
        rows = [(f"p{row}", vector(row)) for row in range(ROWS)]
        await opened.source.embedding_service.store_batch(MODEL, rows)
        asked = await opened.source.build_service.request_automatic(MODEL)
        await build_here(opened.source, asked.build_id)
        await opened.copy_tables()
        yield opened


async def source_removes(pair: Pair) -> VersionRecord:
    """The source's retention removes what both serve."""
    _, record = await record_of(pair.source, MODEL)
    await pair.source.objects.delete(await pair.source.objects.list_keys(record.prefix))
    return record


async def replaced(pair: Pair, client: httpx.AsyncClient, lost: VersionRecord) -> None:
    """Waits for the build that the environment asks for, does it, and waits for it to answer."""

    async def requested() -> bool:
        return (await pair.other.models.get_model(MODEL)).open_build_id is not None

    await until(requested)
    open_build_id = (await pair.other.models.get_model(MODEL)).open_build_id or ""
    await build_here(pair.other, open_build_id)

    async def used() -> bool:
        ready = (await client.get("/health/ready")).json()
        return ready["loaded"].get(MODEL) == open_build_id and not ready["troubles"]

    await until(used)
    _, record = await record_of(pair.other, MODEL)
    assert record.prefix.startswith(environment_prefix(pair.other.settings.environment))
    assert record.build_id != lost.build_id
    assert (await pair.source.models.get_model(MODEL)).current_build_id == lost.build_id


async def test_files_that_the_source_removes_are_made_anew(pair: Pair, pool: Pool) -> None:
    """What is in memory answers meanwhile; as long as they are there nothing is built."""
    app = create_app(pair.other.settings, pair.other)
    async with started(app), client_of(app, pool.token("operators")) as client:
        for model in await pair.other.models.list_models():
            if model.current_build_id is not None:
                await eventually(client, model.model_version)
        assert (await pair.other.models.get_model(MODEL)).open_build_id is None
        lost = await source_removes(pair)
        reply = await client.post(path_of(MODEL, "search"), json={"product_id": "p3"})
        assert reply.json()["index"]["build_id"] == lost.build_id
        await replaced(pair, client, lost)


async def test_a_start_after_the_source_removed_them_has_them_made_anew(
    pair: Pair, pool: Pool
) -> None:
    """Nothing answers until then, and readiness says why."""
    lost = await source_removes(pair)
    app = create_app(pair.other.settings, pair.other)
    async with started(app), client_of(app, pool.token("operators")) as client:

        async def troubled() -> bool:
            troubles = (await client.get("/health/ready")).json()["troubles"]
            return lost.build_id in troubles.get(MODEL, "")

        await until(troubled)
        await replaced(pair, client, lost)
