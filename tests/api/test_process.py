"""`python -m api` as a process, over real HTTP."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from core.settings import Settings
from tests.api.conftest import MODEL, Service
from tests.api.serving import IDS, assert_problem, eventually, path_of, vector
from tests.emulators import free_port
from tests.processes import Process, start


def environ_of(settings: Settings, **more: str) -> dict[str, str]:
    """The environment that says what these settings say."""
    return {
        **os.environ,
        "K9_ENVIRONMENT": settings.environment,
        "AWS_ENDPOINT_URL": settings.aws.endpoint_url or "",
        "AWS_REGION": settings.aws.region,
        "K9_DEADLINE_S": f"{settings.aws.deadline_s:g}",
        "K9_READ_TIMEOUT_S": f"{settings.aws.read_timeout_s:g}",
        "K9_BUCKET": settings.aws.bucket or "",
        "REDIS_URL": settings.redis_url,
        "K9_AUTH_ISSUER": settings.auth.auth_issuer or "",
        "K9_AUTH_JWKS_URL": settings.auth.auth_jwks_url or "",
        "K9_AUTH_CLIENT_IDS": ",".join(settings.auth.auth_client_ids),
        "K9_CACHE_DIR": str(settings.serving.cache_dir),
        "K9_CURSOR_KEYS": ",".join(settings.cursor_keys),
        "K9_METRICS_PORT": "0",
        **more,
    }


@asynccontextmanager
async def running(environ: dict[str, str]) -> AsyncIterator[Process]:
    """The process, which is killed if it is still there at the end.

    Where the block fails, what the process has logged is shown with the failure.
    """
    process = await start("api", environ=environ, stdout=PIPE, stderr=PIPE)
    failed = True
    try:
        yield process
        failed = False
    finally:
        if process.returncode is None:
            process.kill()
        logged = await process.communicate()
        if failed:
            sys.stdout.writelines(part.decode(errors="replace") for part in logged)


@asynccontextmanager
async def client_at(port: int, token: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the process, once it answers."""
    headers = {"authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
        async with asyncio.timeout(60):
            for _ in iter(int, 1):
                try:
                    await client.get("/health/live")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield client


async def test_a_process_serves_searches_and_drains(service: Service) -> None:
    """Ids of any characters reach it, a large body gets its 413, and SIGTERM lets requests end."""
    port, metrics_port = free_port(), free_port()
    environ = environ_of(
        service.settings,
        K9_PORT=str(port),
        K9_METRICS_PORT=str(metrics_port),
        K9_BODY_BYTES_MAX=str(1 << 20),
    )
    token = service.pool.token("operators")
    async with running(environ) as process, client_at(port, token) as client:
        await eventually(client, MODEL)
        for product_id in IDS:
            path = path_of("m-process", "embeddings", product_id)
            assert (await client.put(path, json={"vector": [1, 2]})).status_code == 201
            assert (await client.get(path)).json()["product_id"] == product_id
            reply = await client.get(path_of(MODEL, "products", product_id, "neighbors"))
            assert reply.status_code == 200
        search = f"/models/{MODEL}/search"
        assert_problem(await client.post(search, content=b" " * (9 << 20)), 413, "too-large")
        head = await client.head("/models")
        assert (head.status_code, head.content) == (200, b"")
        metrics = (await client.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
        assert "k9_http_requests_total" in metrics
        assert "k9_event_loop_delay_longest_seconds" in metrics

        async def slow() -> AsyncIterator[bytes]:
            yield b'{"product_id": '
            await asyncio.sleep(1)
            yield b'"plain"}'

        held = asyncio.create_task(client.post(search, content=slow()))
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGINT)  # as Ctrl-C does beside its parent's own stop
        assert (await held).status_code == 200
        async with asyncio.timeout(20):
            assert await process.wait() == 0


async def test_readiness_fails_before_the_port_closes(service: Service) -> None:
    """So that a load balancer sends nothing here any more before a request could be refused."""
    port, metrics_port = free_port(), free_port()
    environ = environ_of(
        service.settings, K9_PORT=str(port), K9_METRICS_PORT=str(metrics_port), K9_NOTICE_S="10"
    )
    token = service.pool.token("operators")
    async with running(environ) as process, client_at(port, token) as client:
        await eventually(client, MODEL)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(8):
            while True:
                ready = await client.get(f"http://127.0.0.1:{metrics_port}/health/ready")
                if ready.status_code == 503:
                    break
                await asyncio.sleep(0.02)
        assert ready.json()["status"] == "draining"
        path = path_of(MODEL, "products", IDS[0], "neighbors")
        for _ in range(3):  # each on a new connection
            reply = await client.get(path)
            assert (reply.status_code, reply.headers["connection"]) == (200, "close")
        assert (await client.get("/health/ready")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200
        async with asyncio.timeout(30):
            assert await process.wait() == 0
        with pytest.raises(httpx.ConnectError):
            await client.get("/health/live")


async def test_a_taken_port_is_one_line_and_an_exit(service: Service) -> None:
    """Rather than half of the requests, which a shared port would give it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with running(environ_of(service.settings, K9_PORT=port)) as process:
            _, written = await process.communicate()
    assert process.returncode == 1
    assert written.decode().splitlines() == [f"K9_PORT={port}: the port is taken on 127.0.0.1"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("K9_PORT", "many"),
        ("K9_AUTH_ISSUER", ""),
        ("K9_AUTH_CLIENT_IDS", ""),
        ("K9_AUTH_JWKS_URL", "file:///etc/passwd"),
        ("K9_CURSOR_KEYS", "short"),
    ],
)
async def test_a_bad_setting_is_one_line_and_an_exit(
    service: Service, name: str, value: str
) -> None:
    """It names the variable."""
    environ = environ_of(service.settings, K9_PORT=str(free_port())) | {name: value}
    async with running(environ) as process:
        _, written = await process.communicate()
    assert process.returncode == 1
    (line,) = written.decode().splitlines()
    assert name in line


async def test_metrics_on_a_taken_port_are_done_without(service: Service) -> None:
    """A warning, and requests are served."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = free_port()
        environ = environ_of(
            service.settings, K9_PORT=str(port), K9_METRICS_PORT=str(taken.getsockname()[1])
        )
        async with running(environ), client_at(port, service.pool.token()) as client:
            await eventually(client, MODEL)
            reply = await client.post(
                f"/models/{MODEL}/search", json={"vector": vector(1).tolist()}
            )
            assert reply.status_code == 200
