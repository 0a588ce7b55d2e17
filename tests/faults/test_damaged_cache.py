"""A cached version that is damaged, while S3 is away."""

import asyncio

import httpx

from core.names import directory_of
from tests.api.serving import build_here, eventually, path_of
from tests.faults.damage import flipped
from tests.faults.proxied_api import GONE, MODEL, ProxiedApi
from tests.faults.proxy import Faults
from tests.faults.test_stability import searched, told


async def loaded(client: httpx.AsyncClient, build_id: str) -> None:
    """Waits until a build answers."""
    async with asyncio.timeout(20):
        while (await client.get("/health/ready")).json()["loaded"].get(MODEL) != build_id:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_damaged_cache_without_s3_serves_the_version_before(site: ProxiedApi) -> None:
    """After a start it answers from the one before, and from the current one once S3 is back."""
    async with site.api() as client:
        await eventually(client, MODEL)
        first = (await client.get("/health/ready")).json()["loaded"][MODEL]
        asked = await client.post(path_of(MODEL, "builds"), json={})
        second = asked.json()["build_id"]
        await build_here(site.straight, second)
        await loaded(client, second)
    cache = directory_of(site.settings.serving.cache_dir, site.settings.environment)
    directory = cache / "versions" / MODEL / f"{second}.1"
    vectors = directory / "vectors.npy"
    vectors.write_bytes(flipped(vectors.read_bytes()))
    site.set(GONE, "s3")
    async with site.api() as client:
        await loaded(client, first)
        await searched(client)
        await told(client, "s3", "failing")
        assert second in (await client.get("/health/ready")).json()["troubles"][MODEL]
        site.set(Faults(), "s3")
        await loaded(client, second)
        await searched(client)
        assert (await client.get("/health/ready")).json()["troubles"] == {}
