"""One application for the tests of the routes, on the emulator, with a published index."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest

from api.app import create_app
from api.entrypoint import Entrypoint
from core.resources import Resources, open_resources
from core.settings import Auth, Http, Serving, Settings
from tests.api.pool import CLIENT_ID, Pool, running_pool
from tests.api.serving import IDS, build_here, client_of, eventually, path_of, started, vector
from tests.api.shop import shop
from tests.emulators import create_tables, settings_for

__all__ = ["shop"]
"""A fixture, by being named here."""
MODEL = "m-1"
"""Its rows are read by tests of several modules: none writes to it."""
ROWS = 60


@dataclass(frozen=True, slots=True)
class Service:
    """A running application, and what tests need of it."""

    app: Entrypoint
    settings: Settings
    resources: Resources
    pool: Pool
    client: httpx.AsyncClient
    """An operator's."""


@pytest.fixture(scope="session")
async def pool() -> AsyncIterator[Pool]:
    """The pool whose tokens are good."""
    async with running_pool() as running:
        yield running


@pytest.fixture(scope="session")
async def api_settings(
    ministack: str, valkey: str, pool: Pool, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """Settings of an API on the emulator, with tables, bucket and a cache of its own."""
    made = await create_tables(settings_for(ministack))
    cache: Path = tmp_path_factory.mktemp("cache")
    return msgspec.structs.replace(
        made,
        redis_url=valkey,
        auth=Auth(
            auth_issuer=pool.issuer, auth_jwks_url=pool.url, auth_client_ids=("other", CLIENT_ID)
        ),
        http=Http(metrics_port=0, body_bytes_max=4 * 1024 * 1024),
        serving=Serving(cache_dir=cache, refresh_s=0.2),
        building=msgspec.structs.replace(made.building, work_dir=cache / "work"),
    )


@pytest.fixture(scope="session")
async def resources(api_settings: Settings) -> AsyncIterator[Resources]:
    """Clients of the emulator."""
    async with open_resources(api_settings) as opened:
        yield opened


@pytest.fixture(scope="package")  # with it end its looks at the tables, five a second
async def service(
    api_settings: Settings, resources: Resources, pool: Pool
) -> AsyncIterator[Service]:
    """An application with 60 products in its index, those of `IDS` among them."""
    app = create_app(api_settings, resources)
    async with started(app), client_of(app, pool.token("operators")) as client:
        entries = [
            {"product_id": product_id, "vector": vector(row).tolist()}
            for row, product_id in enumerate([*IDS, *(f"p-{n}" for n in range(ROWS - len(IDS)))])
        ]
        reply = await client.post(f"/models/{MODEL}/embeddings:batch", json={"embeddings": entries})
        assert reply.status_code == 200, reply.text
        reply = await client.post(path_of(MODEL, "builds"), json={"matrix_k": 5})
        assert reply.status_code == 202, reply.text
        await build_here(resources, reply.json()["build_id"])
        await eventually(client, MODEL)
        yield Service(app, api_settings, resources, pool, client)
        listed = await client.get(path_of(MODEL, "embeddings"), params={"limit": 100})
        assert len(listed.json()["items"]) == ROWS, "a test wrote to the model version of all"


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    """An operator's client."""
    return service.client


async def filled(service: Service, model: str, rows: int, dimension: int) -> httpx.Response:
    """The answer to a batch that makes a model version with an index, which is in use."""
    entries = [
        {"product_id": f"p{n}", "vector": vector(n, dimension).tolist()} for n in range(rows)
    ]
    stored = await service.client.post(
        path_of(model, "embeddings:batch"), json={"embeddings": entries}
    )
    assert stored.status_code == 200, stored.text
    asked = await service.client.post(path_of(model, "builds"), json={})
    await build_here(service.resources, asked.json()["build_id"])
    await eventually(service.client, model)
    return stored
