"""`k9 build` and `k9 verify-build` against processes of the API and the worker, over real HTTP."""

import asyncio
import json
import os
import re
import signal
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import httpx
import pytest

from core.repositories.embedding_rows import row_key
from tests.api.conftest import Service
from tests.api.serving import DIMENSION, path_of, vector
from tests.api.test_process import client_at, environ_of, running
from tests.emulators import free_port
from tests.processes import start
from tests.worker import processes

_ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def machine(
    service: Service, tmp_path: Path, *, worker: bool = True
) -> AsyncIterator[dict[str, str]]:
    """An API and a worker; the environment of commands that speak to them."""
    port = free_port()
    environ = environ_of(
        service.settings,
        K9_PORT=str(port),
        K9_CACHE_DIR=str(tmp_path / "cache"),
        K9_WORK_DIR=str(tmp_path / "work"),
        PYTHONPATH=str(_ROOT),
    )
    commands = environ | {
        "K9_URL": f"http://127.0.0.1:{port}",
        "K9_TOKEN": service.pool.token("operators"),
        "K9_STACK": "off",
    }
    work_dir = {"K9_WORK_DIR": str(tmp_path / "work")}
    async with (
        running(environ) as api,
        client_at(port, service.pool.token()),
        processes.running(service.settings, **work_dir) if worker else nullcontext(),
    ):
        yield commands
        api.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(api.wait(), 15) == 0


async def k9(environ: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of a command."""
    process = await start("k9", *arguments, environ=environ, stdout=PIPE, stderr=PIPE)
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def damage(
    service: Service, model: str, product_id: str, data: bytes = b"\0\0\x80\x3f" * DIMENSION
) -> bytes:
    """Writes another vector into a row, behind K9's back; the one that was there."""
    resources = service.resources
    before = (await resources.embeddings.get_embedding(model, product_id)).vector
    await resources.dynamo.call(
        "update_item",
        TableName=service.settings.table("embeddings"),
        Key=row_key(model, product_id),
        UpdateExpression="SET embedding_vector = :vector",
        ExpressionAttributeValues={":vector": {"B": data}},
    )
    assert before is not None
    return before


@pytest.mark.timeout(200)
async def test_a_build_that_is_not_published_is_no_success(
    service: Service, tmp_path: Path
) -> None:
    """The command says why, in a line, and its status tells."""
    client, model = service.client, "m-unsuccessful"
    entries = [{"product_id": f"p{n}", "vector": vector(n).tolist()} for n in range(60)]
    await client.post(f"/models/{model}/embeddings:batch", json={"embeddings": entries})
    async with machine(service, tmp_path) as environ:
        few = "--matrix-k", "4"
        assert (await k9(environ, "build", model, *few))[0] == 0
        for number, entry in enumerate(entries):
            entry["vector"] = vector(1000 + number).tolist()
        await client.post(f"/models/{model}/embeddings:batch", json={"embeddings": entries})
        status, out, error = await k9(environ, "build", model, *few)
        assert (status, out, error.count("\n")) == (1, "", 1)
        assert "K9_OVERLAP_MIN" in error
    async with machine(service, tmp_path, worker=False) as environ:
        watching = asyncio.create_task(k9(environ, "build", model, "--force"))
        async with asyncio.timeout(60):
            models = service.resources.models
            while not (known := await models.get_model(model)).open_build_id:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await client.delete(f"/builds/{known.open_build_id}")).status_code == 202
        status, out, error = await watching
        assert (status, out, error.count("\n")) == (1, "", 1)
        assert f"build {known.open_build_id} was cancelled" in error


@pytest.mark.timeout(200)
async def test_builds_are_followed_and_verified(service: Service, tmp_path: Path) -> None:
    """A build is watched to its end; its files can be made again; changes and damage are told."""
    client, model = service.client, "m-commands"
    entries = [{"product_id": f"p{n}", "vector": vector(n).tolist()} for n in range(40)]
    await client.post(f"/models/{model}/embeddings:batch", json={"embeddings": entries})
    async with machine(service, tmp_path) as environ:
        status, out, error = await k9(environ, "build", model, "--deterministic")
        assert (status, error) == (0, "")
        found = re.match(r"build (\w+) published: 40 rows, index exact, recall@10 1.0000", out)
        assert found
        status, out, error = await k9(environ, "verify-build", model)
        assert (status, error) == (0, "")
        assert "files are equal" in out
        before = await damage(service, model, "p7")
        status, out, error = await k9(environ, "verify-build", model)
        assert (status, error) == (1, "")
        assert "vectors.npy: " in out
        assert "files differ; no row changed" in out
        await damage(service, model, "p7", before)
        await client.put(path_of(model, "embeddings", "p7"), json={"vector": vector(77).tolist()})
        status, out, error = await k9(environ, "verify-build", found[1])
        assert (status, error) == (2, "")
        assert "1 rows changed" in out
        status, _, error = await k9(environ, "verify-build", "nothing")
        assert (status, error.count("\n")) == (3, 1)
        assert "neither" in error


async def test_events_over_http_end_with_their_client_and_their_process(
    service: Service, tmp_path: Path
) -> None:
    """A client that leaves frees its stream, and a process that stops ends those that are left."""
    port = free_port()
    environ = environ_of(
        service.settings, K9_PORT=str(port), K9_CACHE_DIR=str(tmp_path), K9_EVENT_STREAMS_MAX="1"
    )
    await service.client.put(
        path_of("m-http-events", "embeddings", "a"), json={"vector": vector(1).tolist()}
    )
    reply = await service.client.post(path_of("m-http-events", "builds"))
    path = f"/builds/{reply.json()['build_id']}/events"
    token = service.pool.token("readers")
    async with running(environ | dict(os.environ)) as process, client_at(port, token) as client:
        async with client.stream("GET", path) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: build"
            assert json.loads((await anext(lines)).removeprefix("data: "))["status"] == "queued"
            async with client_at(port, service.pool.token("readers", sub="b")) as other:
                assert (await other.get(path)).status_code == 503
        began = None
        async with asyncio.timeout(10):
            while began is None:
                async with client.stream("GET", path) as stream:
                    if stream.status_code == 200:
                        began = time.monotonic()
                        process.send_signal(signal.SIGTERM)
                        try:
                            async for _ in stream.aiter_lines():
                                pass
                        except httpx.TransportError:
                            pytest.fail("the stream was cut off")
        assert time.monotonic() - began < 5
        assert await asyncio.wait_for(process.wait(), 10) == 0
