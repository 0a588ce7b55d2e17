"""A 503 says what a caller may know; the names of tables and buckets are in the log."""

from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from api.app import create_app
from core.settings import Settings
from tests.api.conftest import Service
from tests.api.serving import assert_problem, client_of, path_of, started, vector

WRITE = {"vector": vector(1).tolist()}


@pytest.fixture(scope="module")
async def bare(
    api_settings: Settings, service: Service
) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """An operator's client of an API whose tables and bucket were never made; its environment."""
    environment = f"bare-{uuid4().hex[:12]}"
    settings = msgspec.structs.replace(
        api_settings,
        environment=environment,
        aws=msgspec.structs.replace(api_settings.aws, bucket=f"k9-{environment}"),
        serving=msgspec.structs.replace(
            api_settings.serving, cache_dir=api_settings.serving.cache_dir / environment
        ),
    )
    app = create_app(settings)
    async with started(app), client_of(app, service.pool.token("operators")) as client:
        yield client, environment


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/users/me", None),
        ("POST", "/users", {}),
        ("DELETE", "/users/me", None),
        ("GET", "/reports", None),
        ("POST", "/reports", {"title": "t"}),
        ("PATCH", "/reports/r", {"title": "t"}),
        ("DELETE", "/reports/r", None),
        ("GET", "/models", None),
        ("GET", path_of("m", "embeddings"), None),
        ("GET", path_of("m", "embeddings", "p"), None),
        ("PUT", path_of("m", "embeddings", "p"), WRITE),
        ("POST", "/models/m/embeddings:batch", {"embeddings": [{"product_id": "p", **WRITE}]}),
        ("POST", path_of("m", "search"), WRITE),
        ("POST", path_of("m", "builds"), {}),
        ("GET", "/builds/b", None),
    ],
)
async def test_a_missing_table_is_not_named(
    bare: tuple[httpx.AsyncClient, str], method: str, path: str, body: object
) -> None:
    """On no route, under an idempotency key neither; the log has its name and the request's id."""
    client, environment = bare
    for headers in ({}, {"idempotency-key": "k"}):
        with capture_logs() as lines:
            reply = await client.request(method, path, json=body, headers=headers)
        detail = assert_problem(reply, 503)["detail"]
        for name in (environment, "k9-", "K9_", "AWS", "get_item", "query", "write"):
            assert name not in reply.text
        assert "operator" in detail
        [line] = [line for line in lines if line["event"] == "request not served"]
        assert environment in line["detail"]
        assert line["request_id"] == reply.headers["x-request-id"]
