"""Data of a later release: what the API says, and that it changes nothing."""

from collections.abc import AsyncIterator

import httpx
import pytest

from api.app import create_app
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.api.pool import Pool
from tests.api.serving import (
    assert_problem,
    build_here,
    client_of,
    eventually,
    path_of,
    started,
    vector,
)
from tests.api.shop import until
from tests.contracts.test_newer_formats import make_newer, newer_tables
from tests.worker.two_environments import open_pair

MODEL = "m-newer"


@pytest.fixture
async def resources(api_settings: Settings) -> AsyncIterator[Resources]:
    """An environment of this test's own, with a published index."""
    async with open_pair(api_settings) as pair, open_resources(pair.other.settings) as opened:
        await opened.embedding_service.store_batch(MODEL, [(f"p{n}", vector(n)) for n in range(9)])
        asked = await opened.build_service.request_automatic(MODEL)
        await build_here(opened, asked.build_id)
        yield opened


async def rows_of(resources: Resources) -> list[object]:
    """Every row of the tables that the requests below would change."""
    found: list[object] = []
    for table in ("users", "reports", "embeddings", "builds", "idempotency", "models"):
        reply = await resources.dynamo.call("scan", TableName=resources.settings.table(table))
        found.append(sorted(map(str, reply["Items"])))
    return found


async def test_newer_tables_are_said_so_and_left_alone(resources: Resources, pool: Pool) -> None:
    """Readiness fails, every request that needs the tables is a 503; searches go on from memory."""
    app = create_app(resources.settings, resources)
    async with started(app), client_of(app, pool.token("operators")) as client:
        await eventually(client, MODEL)

        async def outdated() -> bool:
            return (await client.get("/health/ready")).status_code == 503

        async with newer_tables(resources.dynamo, resources.settings):
            await until(outdated)
            async with client_of(app) as anyone:
                ready = (await anyone.get("/health/ready")).json()
            assert ready["status"] == "outdated"
            assert "format 2" in ready["reason"]
            assert "up to 1" in ready["reason"]
            assert "Upgrade" in ready["reason"]
            before = await rows_of(resources)
            for method, path, body in (
                ("POST", "/users", {"name": "A"}),
                ("POST", "/reports", {"title": "T"}),
                ("GET", "/reports", None),
                ("PUT", path_of(MODEL, "embeddings", "p1"), {"vector": vector(1).tolist()}),
                ("DELETE", path_of(MODEL, "embeddings", "p1"), None),
                ("POST", path_of(MODEL, "builds"), {}),
                ("DELETE", f"/models/{MODEL}", None),
            ):
                headers = {"idempotency-key": "k"}
                reply = await client.request(method, path, json=body, headers=headers)
                problem = assert_problem(reply, 503, "newer-format")
                assert "format 2" in problem["detail"]
            assert await rows_of(resources) == before
            reply = await client.post(path_of(MODEL, "search"), json={"product_id": "p3"})
            assert reply.status_code == httpx.codes.OK
        await eventually(client, MODEL)
        assert (await client.post("/reports", json={"title": "T"})).status_code == 201


async def test_a_newer_model_version_is_said_so_and_left_alone(
    resources: Resources, pool: Pool
) -> None:
    """It alone answers 503; readiness names it to a valid token, and others are served."""
    app = create_app(resources.settings, resources)
    async with started(app), client_of(app, pool.token("operators")) as client:
        await eventually(client, MODEL)
        await resources.embedding_service.store_batch("m-other", [("p", vector(1))])
        await make_newer(resources.dynamo, resources.settings, "models", model_version=MODEL)

        async def told() -> bool:
            troubles = (await client.get("/health/ready")).json()["troubles"]
            return "format 2" in troubles.get(MODEL, "")

        await until(told)
        resources.models.forget(MODEL)
        before = await rows_of(resources)
        for method, path, body in (
            ("POST", path_of(MODEL, "search"), {"product_id": "p3"}),
            ("PUT", path_of(MODEL, "embeddings", "p1"), {"vector": vector(1).tolist()}),
            ("POST", path_of(MODEL, "builds"), {}),
            ("GET", f"/models/{MODEL}", None),
            ("DELETE", f"/models/{MODEL}", None),
        ):
            reply = await client.request(method, path, json=body)
            assert "format 2" in assert_problem(reply, 503, "newer-format")["detail"]
        assert await rows_of(resources) == before
        assert (await client.get("/models/m-other")).status_code == httpx.codes.OK
