"""The check at the end of a deployment, against servers that answer rightly or not."""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from deploy.aws.smoke_test import check_api
from deploy.errors import CommandError

_PROBLEM = "application/problem+json"


@asynccontextmanager
async def serving(answers: dict[str, tuple[int, str]]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server with these answers; its address, and the host names that it was asked for."""
    hosts: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        hosts.append(request.host)
        status, media = answers.get(request.path, (404, _PROBLEM))
        return web.Response(status=status, content_type=media, text="{}")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield "{}:{}".format(*runner.addresses[0]), hosts
    finally:
        await runner.cleanup()


_RIGHT = {
    "/health/ready": (200, "application/json"),
    "/openapi.json": (200, "application/json"),
    "/models": (401, _PROBLEM),
}


async def test_right_answers_pass() -> None:
    """At the load balancer, by the name that clients use."""
    said: list[str] = []
    async with serving(_RIGHT) as (address, hosts):
        await check_api("http://k9.example.com", address, said.append, wait_s=0)
    assert hosts == ["k9.example.com"] * 3
    assert said[-1] == "GET /models: 401, as it should be"


@pytest.mark.parametrize(
    ("path", "answer", "expected"),
    [
        ("/health/ready", (503, "application/json"), "/health/ready: 503 in place of 200"),
        ("/models", (200, "application/json"), "/models: 200 in place of 401"),
        ("/models", (401, "text/html"), f"a body of text/html in place of {_PROBLEM}"),
    ],
)
async def test_a_wrong_answer_is_named(path: str, answer: tuple[int, str], expected: str) -> None:
    """An API without tokens' checks, or another service at that address, does not pass."""
    async with serving({**_RIGHT, path: answer}) as (address, _):
        with pytest.raises(CommandError, match=re.escape(expected)):
            await check_api("http://k9.example.com", address, lambda _: None, wait_s=0)


async def test_https_is_not_taken_on_trust() -> None:
    """What answers without the certificate of the name is no answer."""
    assert ssl.create_default_context().check_hostname
    async with serving(_RIGHT) as (address, _):
        with pytest.raises(CommandError, match="/health/ready: no answer: Client"):
            await check_api("https://k9.example.com", address, lambda _: None, wait_s=0)
