"""The short form of `python -m tests.faults.callers`: on few rows, and without times."""

from collections.abc import AsyncIterator
from contextlib import nullcontext

import httpx
import numpy as np
import pytest

from tests.api.test_process import client_at
from tests.benchmarks.stock import published, store
from tests.faults.attacks import ATTACKS, Target
from tests.faults.callers import (
    SHARE_MIN,
    STREAMS,
    Stack,
    attacked,
    open_build,
    stream_status,
    watch,
)
from tests.faults.questions import answering
from tests.faults.site import WORKERS, Site, open_site

ROWS, DIMENSION = 300, 32
CONNECTIONS = 600
"""More than an attack with requests in progress opens; idle ones fill it."""

pytestmark = pytest.mark.timeout(240)


def _pid(site: Site, name: str) -> int:
    pid = site.parts[name].pid
    assert pid is not None
    return pid


def _hang(site: Site, *, hung: bool) -> None:
    if hung:
        site.pool.held.clear()
    else:
        site.pool.held.set()


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    """A site with a small index, and its callers."""
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIMENSION)).astype(np.float32)
    async with open_site(K9_CONNECTIONS_MAX=str(CONNECTIONS)) as site:
        await store(site.resources, "m", {f"p{n}": row for n, row in enumerate(vectors)})
        build = await published(site.resources, "m")
        port = int(site.api_url.rpartition(":")[2])
        async with client_at(port, site.pool.token(sub="bob")) as client:
            await answering(client, build.build_id)
        yield Stack(
            target=Target(
                port=port,
                token=site.pool.token(sub="mallory"),
                operator=site.pool.token("operators", sub="oscar"),
                model="m",
                dimension=DIMENSION,
                build_id=build.build_id,
                connections_max=CONNECTIONS,
            ),
            bystander=site.pool.token(sub="bob"),
            second_operator=site.pool.token("operators", sub="olga"),
            api_pid=_pid(site, "api"),
            worker_pids=tuple(_pid(site, name) for name in WORKERS),
            hang_keys=lambda hung: _hang(site, hung=hung),
        )


@pytest.mark.parametrize("name", ATTACKS)
async def test_another_caller_is_served_throughout(stack: Stack, name: str) -> None:
    """Whatever one caller does, the searches of another are answered, and readiness is well."""
    async with (
        open_build(stack) if name == STREAMS else nullcontext(stack) as target,
        attacked(target, name),
    ):
        seen = await watch(target, seconds=1, rate=30)
        assert seen.share >= SHARE_MIN, seen.outcomes
        if name == STREAMS:
            assert await stream_status(target) == httpx.codes.OK
        async with httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{target.target.port}/health/ready"
            assert (await client.get(url, timeout=30)).status_code == httpx.codes.OK
