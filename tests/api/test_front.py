"""What every request passes: ids, paths, admission, headers, the last resort."""

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY

from api.app import create_app
from core.names import directory_of
from core.resources import Resources
from core.settings import Settings
from tests.api.conftest import MODEL, Service
from tests.api.serving import assert_problem, client_of, eventually, path_of, started

SEARCH = f"/models/{MODEL}/search"


@pytest.mark.parametrize("given", ["a", "A-b_9", "x" * 64])
async def test_a_request_id_is_kept(client: httpx.AsyncClient, given: str) -> None:
    """On good answers and bad ones, whichever lane they take."""
    headers = {"x-request-id": given}
    for path in ("/health/live", "/nothing", path_of(MODEL, "products", "plain", "neighbors")):
        assert (await client.get(path, headers=headers)).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "ü", "a\tb", "<script>"])
async def test_a_request_id_is_made_where_there_is_no_good_one(
    client: httpx.AsyncClient, given: str | None
) -> None:
    """It is another one each time."""
    headers = {} if given is None else {b"x-request-id": given.encode()}
    made = {(await client.get("/health/live", headers=headers)).headers["x-request-id"]}
    made.add((await client.get("/health/live", headers=headers)).headers["x-request-id"])
    assert len(made) == 2
    assert given not in made


async def test_head_is_get_without_a_body(client: httpx.AsyncClient) -> None:
    """With the same length; and an error has none either."""
    for path, status in (("/models", 200), ("/health/live", 200), ("/nothing", 404)):
        head = await client.head(path)
        assert (head.status_code, head.content) == (status, b"")
        assert int(head.headers["content-length"]) > 0


async def test_an_error_nobody_expected_shows_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a 500 with the request id, and the log has the rest."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    for target, name, path in (
        (type(service.resources.models), "list_models", "/models"),
        (_registry(service), "current", path_of(MODEL, "products", "plain", "neighbors")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, broken)
            reply = await service.client.get(path, headers={"x-request-id": "find-me"})
        problem = assert_problem(reply, 500, "internal")
        assert "secret" not in reply.text
        assert "ZeroDivision" not in reply.text
        assert problem["title"]
        written = "".join(capsys.readouterr())
        assert "find-me" in written
        assert "ZeroDivisionError" in written


def _registry(service: Service) -> Any:
    context = service.app.context
    assert context is not None
    return type(context.registry)


async def test_metrics_name_routes_and_never_ids(client: httpx.AsyncClient) -> None:
    """A product id, a made-up path and a made-up method leave no label."""
    await client.get(path_of(MODEL, "embeddings", "secret-id"))
    await client.get(path_of(MODEL, "products", "secret-id", "neighbors"))
    await client.get("/secret-id")
    await client.request("SECRET-ID", "/models")
    samples = [s for family in REGISTRY.collect() for s in family.samples]
    labels = {value for sample in samples for value in sample.labels.values()}
    assert "/models/{model_version}/products/{product_id}/neighbors" in labels
    assert "/models/{model_version}/embeddings/{product_id}" in labels
    assert not any("secret" in label.lower() for label in labels)


async def test_cors_is_off_unless_origins_are_set(service: Service) -> None:
    """And then it is on for those alone, on answers and on errors."""
    ask = {"origin": "https://shop.test", "access-control-request-method": "POST"}
    reply = await service.client.options(SEARCH, headers=ask)
    assert not any(name.startswith("access-control") for name in reply.headers)
    http = msgspec.structs.replace(service.settings.http, cors_origins=("https://shop.test",))
    app = create_app(msgspec.structs.replace(service.settings, http=http), service.resources)
    async with started(app), client_of(app) as client:
        reply = await client.options(SEARCH, headers=ask)
        assert reply.status_code == 204
        assert reply.headers["access-control-allow-origin"] == "https://shop.test"
        assert "Authorization" in reply.headers["access-control-allow-headers"]
        refused = await client.post(SEARCH, headers={"origin": "https://shop.test"})
        assert_problem(refused, 401)
        assert refused.headers["access-control-allow-origin"] == "https://shop.test"
        other = await client.options(SEARCH, headers=ask | {"origin": "https://evil.test"})
        assert not any(name.startswith("access-control") for name in other.headers)


async def test_a_start_without_aws_serves_what_the_cache_has(
    api_settings: Settings, service: Service, resources: Resources
) -> None:
    """No DynamoDB, S3, Redis or Cognito: keys and indexes of the last run answer all the same."""
    kept = directory_of(api_settings.serving.cache_dir, api_settings.environment)
    async with asyncio.timeout(10):
        while not (kept / "auth-keys.json").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    nowhere = "http://127.0.0.1:9"
    aws = msgspec.structs.replace(
        api_settings.aws, endpoint_url=nowhere, attempts_max=1, connect_timeout_s=0.2
    )
    away = msgspec.structs.replace(api_settings, aws=aws, redis_url="redis://127.0.0.1:9/0")
    service.pool.status = 503
    try:
        app = create_app(away)
        async with started(app), client_of(app, service.pool.token("operators")) as client:
            await eventually(client, MODEL)
            reply = await client.post(SEARCH, json={"product_id": "plain", "k": 3})
            assert reply.status_code == 200, reply.text
            assert_problem(await client.get("/models"), 503, "unavailable")
            known = (await client.get("/health/ready")).json()["dependencies"]
            assert known["dynamodb"]["state"] == "failing"
            assert known["cognito"]["state"] == "failing"
    finally:
        service.pool.status = 200
