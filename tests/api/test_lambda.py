"""The API by its Lambda handler, with the event that AWS documents for payload format 2.0."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aioboto3
import msgspec
import pytest

from api.lambda_handler import LambdaApi, read_secrets
from core.settings import Settings
from tests.api.conftest import MODEL, Service
from tests.api.pool import Pool
from tests.api.serving import DIMENSION, path_of, vector

Answer = Callable[[dict[str, Any]], Any]
_EVENT = Path(__file__).with_name("event_of_api_gateway_v2.json")


def event(method: str, path: str, body: bytes | str = "", **headers: str) -> dict[str, Any]:
    """The documented event, for another request."""
    made: dict[str, Any] = json.loads(_EVENT.read_text())
    made["rawPath"], _, made["rawQueryString"] = path.partition("?")
    made["requestContext"]["http"] |= {"method": method, "path": made["rawPath"]}
    made["headers"] = {name.replace("_", "-"): value for name, value in headers.items()}
    made["isBase64Encoded"] = isinstance(body, bytes)
    made["body"] = base64.b64encode(body).decode() if isinstance(body, bytes) else body
    return made


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Answer]:
    """An execution environment: one thread, whose event loop runs only while it answers."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        api = await loop.run_in_executor(thread, LambdaApi, settings)
        try:
            yield lambda sent: loop.run_in_executor(thread, api.answer, sent, None)
        finally:
            await loop.run_in_executor(thread, api.close)


@pytest.fixture(scope="module")
async def answer(
    service: Service, api_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Answer]:
    """The handler, on tables that have an index."""
    cache = tmp_path_factory.mktemp("cache")
    serving = msgspec.structs.replace(api_settings.serving, cache_dir=cache)
    async with running(msgspec.structs.replace(api_settings, serving=serving)) as answering:
        yield answering


async def test_the_documented_event_is_answered(answer: Answer) -> None:
    """Its path is none of K9's: a 404 as any other, in the form that API Gateway reads."""
    reply = await answer(json.loads(_EVENT.read_text()))
    assert reply["statusCode"] == 404
    assert reply["headers"]["content-type"] == "application/problem+json"
    assert reply["isBase64Encoded"] is False
    assert json.loads(reply["body"])["status"] == 404


async def test_a_search_is_as_over_http(answer: Answer, pool: Pool, service: Service) -> None:
    """The first request finds the current index; JSON and msgpack, both ways."""
    question = {"vector": vector(3).tolist(), "k": 5}
    token = f"Bearer {pool.token()}"
    path = path_of(MODEL, "search")
    expected = (await service.client.post(path, json=question)).json()["neighbors"]
    sent = event(
        "POST", path, json.dumps(question), authorization=token, content_type="application/json"
    )
    reply = await answer(sent)
    assert reply["statusCode"] == 200, reply["body"]
    assert json.loads(reply["body"])["neighbors"] == expected
    packed = msgspec.msgpack.encode({**question, "vector": vector(3).tobytes()})
    media = "application/msgpack"
    reply = await answer(
        event("POST", path, packed, authorization=token, content_type=media, accept=media)
    )
    assert reply["statusCode"] == 200, reply["body"]
    assert reply["isBase64Encoded"] is True
    found = msgspec.msgpack.decode(base64.b64decode(reply["body"]))["neighbors"]
    assert [each["product_id"] for each in found] == [each["product_id"] for each in expected]


async def test_queries_and_escaped_ids_arrive(answer: Answer, pool: Pool) -> None:
    """A slash in a product id stays one where API Gateway leaves the path as it came."""
    sent = event(
        "GET",
        f"{path_of(MODEL, 'products', 'with/slash', 'neighbors')}?k=3",
        authorization=f"Bearer {pool.token()}",
    )
    reply = await answer(sent)
    async with asyncio.timeout(30):
        while reply["statusCode"] == 503:  # an index that takes longer to load than a start waits
            reply = await answer(sent)
    assert reply["statusCode"] == 200, reply["body"]
    assert len(json.loads(reply["body"])["neighbors"]) == 3


async def test_a_write_is_visible_to_its_watermark(answer: Answer, pool: Pool) -> None:
    """A search that names the write waits, within its own request, until it reflects it."""
    token = f"Bearer {pool.token('operators')}"
    written = vector(977) * 3
    path = path_of(MODEL, "embeddings", "of-lambda")
    body = json.dumps({"vector": written.tolist()})
    kind = "application/json"
    reply = await answer(event("PUT", path, body, authorization=token, content_type=kind))
    assert reply["statusCode"] == 201
    assert len(written) == DIMENSION
    question = {
        "vector": written.tolist(),
        "k": 1,
        "min_watermark": reply["headers"]["x-watermark"],
    }
    path = path_of(MODEL, "search")
    reply = await answer(
        event("POST", path, json.dumps(question), authorization=token, content_type=kind)
    )
    assert json.loads(reply["body"])["neighbors"][0]["product_id"] == "of-lambda"
    reply = await answer(
        event("DELETE", path_of(MODEL, "embeddings", "of-lambda"), authorization=token)
    )
    assert reply["statusCode"] == 204


async def test_no_token_is_401(answer: Answer) -> None:
    """The handler passes by nothing of what every request passes."""
    reply = await answer(event("GET", "/models"))
    assert reply["statusCode"] == 401
    assert "x-request-id" in reply["headers"]


async def test_secrets_are_read_by_their_names(ministack: str) -> None:
    """The environment has ARNs, the settings what is behind them."""
    environ = {"AWS_ENDPOINT_URL": ministack, "AWS_REGION": "us-east-1"}
    assert await read_secrets(environ) == {}
    async with aioboto3.Session().client(
        "secretsmanager", region_name="us-east-1", endpoint_url=ministack
    ) as client:
        made = await client.create_secret(Name="k9/of-lambda", SecretString="redis://:pw@h:6379/0")
    environ["K9_REDIS_URL_SECRET"] = made["ARN"]
    assert await read_secrets(environ) == {"REDIS_URL": "redis://:pw@h:6379/0"}
