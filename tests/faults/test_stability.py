"""Searches go on from what is loaded, whichever part is gone; writes fail clearly."""

import asyncio

import httpx
import msgspec
import pytest

from tests.api.serving import assert_problem, eventually, path_of, vector
from tests.faults.proxied_api import GONE, HUNG, MODEL, PARTS, ProxiedApi
from tests.faults.proxy import Faults


async def searched(client: httpx.AsyncClient) -> None:
    """Every kind of search answers."""
    by_vector = await client.post(path_of(MODEL, "search"), json={"vector": vector(3).tolist()})
    assert by_vector.status_code == 200, by_vector.text
    assert by_vector.json()["neighbors"][0]["product_id"] == "p3"
    by_product = await client.get(path_of(MODEL, "products", "p3", "neighbors"))
    assert by_product.status_code == 200, by_product.text
    assert len(by_product.json()["neighbors"]) == 10


async def wrote(client: httpx.AsyncClient, product_id: str) -> httpx.Response:
    """The answer to a write."""
    return await client.put(
        path_of(MODEL, "embeddings", product_id), json={"vector": vector(99).tolist()}
    )


async def told(client: httpx.AsyncClient, part: str, state: str) -> None:
    """Waits until readiness, which stays 200, tells this state of a part."""
    async with asyncio.timeout(20):
        while True:
            ready = await client.get("/health/ready")
            assert ready.status_code == 200
            if ready.json()["dependencies"][part]["state"] == state:
                return
            await asyncio.sleep(0.05)


async def test_with_a_part_gone_searches_go_on(site: ProxiedApi) -> None:
    """One by one, refused and hung: searches answer, readiness stays, and all comes back."""
    async with site.api() as client:
        await eventually(client, MODEL)
        for part in PARTS:
            for faults in (GONE, HUNG):
                site.set(faults, part)
                await searched(client)
                assert (await client.get("/health/ready")).status_code == 200
                site.set(Faults(), part)
        async with asyncio.timeout(20):
            while (await wrote(client, "back")).status_code not in {200, 201}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_every_part_that_is_gone_is_missed(
    site: ProxiedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness tells of each though nothing is asked of it, and that it is back."""
    monkeypatch.setattr("api.serving.probes._INTERVAL_S", 0.2)
    auth = msgspec.structs.replace(site.settings.auth, auth_keys_refresh_s=0.2)
    site.settings = msgspec.structs.replace(site.settings, auth=auth)
    async with site.api() as client:
        await eventually(client, MODEL)
        for faults, state in ((Faults(), "ok"), (GONE, "failing"), (Faults(), "ok")):
            site.set(faults, *PARTS)
            for part in PARTS:
                await told(client, part, state)


@pytest.mark.parametrize("faults", [GONE, HUNG], ids=["gone", "hung"])
async def test_writes_without_dynamodb_fail_clearly(site: ProxiedApi, faults: Faults) -> None:
    """A write is a 503 problem that says which part is gone, and works when it is back."""
    async with site.api() as client:
        await eventually(client, MODEL)
        site.set(faults, "dynamodb")
        for request in (
            client.put(path_of(MODEL, "embeddings", "x"), json={"vector": vector(1).tolist()}),
            client.post("/reports", json={"title": "Test Report"}),
            client.post(path_of(MODEL, "builds"), json={}),
        ):
            reply = await request
            body = assert_problem(reply, 503)
            assert "DynamoDB" in body["detail"]
            assert "127.0.0.1" not in reply.text
            assert reply.headers["retry-after"]
        site.set(Faults(), "dynamodb")
        assert (await wrote(client, "x")).status_code in {200, 201}


async def test_without_redis_a_build_is_still_taken(site: ProxiedApi) -> None:
    """The table is the truth: the build is opened, and waits for the reconciler."""
    async with site.api() as client:
        await eventually(client, MODEL)
        site.set(GONE, "redis")
        reply = await client.post(path_of(MODEL, "builds"), json={})
        assert reply.status_code == 202, reply.text
        site.set(Faults(), "redis")
        build = await site.straight.builds.get_build(reply.json()["build_id"])
        assert build.status == "queued"


async def test_a_start_with_everything_gone_serves_the_cache(site: ProxiedApi) -> None:
    """On the same disk an API starts and answers with all four parts gone, and then recovers."""
    site.set(GONE, *PARTS)
    async with site.api() as client:
        await eventually(client, MODEL, seconds=30)
        await searched(client)
        await told(client, "dynamodb", "failing")
        await told(client, "cognito", "failing")
        assert_problem(await wrote(client, "late"), 503)
        site.set(Faults(), *PARTS)
        async with asyncio.timeout(30):
            while (await wrote(client, "late")).status_code not in {200, 201}:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            await told(client, "dynamodb", "ok")


async def test_a_flaky_dynamodb_loses_nothing(site: ProxiedApi) -> None:
    """With a third of all calls throttled or cut, every row that was answered for is there."""
    async with site.api() as client:
        await eventually(client, MODEL)
        site.set(Faults(throttle_rate=0.33, cut_rate=0.05), "dynamodb")
        stored = []
        for row in range(40):
            reply = await wrote(client, f"flaky-{row}")
            if reply.status_code in {200, 201}:
                stored.append(f"flaky-{row}")
            else:
                assert_problem(reply, 503)
        injected = site.proxies["dynamodb"].injected
        site.set(Faults(), "dynamodb")
        assert injected["throttled"] > 0
        assert stored
        for product_id in stored:
            reply = await client.get(path_of(MODEL, "embeddings", product_id))
            assert reply.status_code == 200
