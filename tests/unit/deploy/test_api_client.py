from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from deploy.api_client import Api, ProblemError, open_api, path_of
from deploy.errors import CommandError


@asynccontextmanager
async def _answering(status: int, body: bytes) -> AsyncIterator[tuple[Api, list[web.Request]]]:
    """An API that gives one answer to everything, and the requests that it got."""
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with open_api(f"http://127.0.0.1:{runner.addresses[0][1]}/", "t0ken") as api:
            yield api, seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("product_id", "segment"),
    [("a/b", "a%2Fb"), ("a b", "a%20b"), ("100%", "100%25"), ("é?#", "%C3%A9%3F%23")],
)
async def test_product_ids_reach_the_api_as_they_are(product_id: str, segment: str) -> None:
    """Encoded once, and not again or less by the client library."""
    async with _answering(200, b"{}") as (api, seen):
        await api.call("GET", path_of("models", "m", "products", product_id), query={"k": 3})
    assert seen[0].raw_path == f"/models/m/products/{segment}?k=3"
    assert seen[0].headers["Authorization"] == "Bearer t0ken"


async def test_a_problem_is_one_line() -> None:
    """Title, detail and the fields that the detail does not tell of."""
    problem = {
        "type": "https://k9/problems/invalid",
        "title": "The request does not hold",
        "status": 422,
        "detail": "the parameters\ndo not hold",
        "errors": [{"field": f"f{n}", "message": f"is bad in way {n}"} for n in range(5)],
    }
    async with _answering(422, msgspec.json.encode(problem)) as (api, _):
        with pytest.raises(ProblemError) as raised:
            await api.call("POST", "/x", body={})
    assert str(raised.value) == (
        "The request does not hold; the parameters do not hold; f0: is bad in way 0; "
        "f1: is bad in way 1; f2: is bad in way 2; and 2 more (HTTP 422)"
    )
    assert raised.value.kind == "invalid"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (502, b"<html>", "HTTP 502"),
        (200, b"<html>", "did not answer with JSON"),
        (401, b"{}", "K9_TOKEN"),
    ],
)
async def test_other_answers_are_one_line_too(status: int, body: bytes, words: str) -> None:
    """A proxy's page, something that is not K9, and a missing token."""
    async with _answering(status, body) as (api, _):
        with pytest.raises(CommandError, match=words):
            await api.call("GET", "/x")
