"""What the proxy says it injected is what happened: to the server behind it, and to its client."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from zlib import crc32

import aiohttp
import pytest
from aiohttp import web

from tests.faults.proxy import Faults, Proxy, proxied

GET, BATCH = "GetItem", "BatchWriteItem"
ANSWER = {"Item": {"id": {"S": "é" * 40_000}}}


class Upstream:
    """Stands for DynamoDB: takes all that comes, and remembers it."""

    def __init__(self) -> None:
        self.came: list[tuple[str, Any]] = []
        self.chunked = False
        self.keep_alive_s = 75.0
        """After an idle connection is closed; a request that comes just then fails."""
        self.busy: dict[str, list[Any]] = {}
        """What it leaves undone itself."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A reply with a checksum, whole or in chunks."""
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.came.append((operation, await request.json()))
        answer = {"UnprocessedItems": self.busy} if operation == BATCH else ANSWER
        data = json.dumps(answer).encode()
        checksum = {"x-amz-crc32": str(crc32(data))}
        if not self.chunked:
            return web.Response(body=data, headers=checksum)
        reply = web.StreamResponse(headers=checksum)
        reply.enable_chunked_encoding()
        await reply.prepare(request)
        for start in range(0, len(data), 7000):
            await reply.write(data[start : start + 7000])
        return reply

    @asynccontextmanager
    async def behind(
        self, faults: Faults, *, seed: int = 1, dynamodb: bool = True
    ) -> AsyncIterator[Proxy]:
        """A proxy before it."""
        application = web.Application(client_max_size=10**8)
        application.router.add_post("/", self.answer)
        runner = web.AppRunner(application, keepalive_timeout=self.keep_alive_s)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            port = runner.addresses[0][1]
            async with proxied(port, seed=seed, dynamodb=dynamodb) as proxy:
                proxy.set(faults)
                yield proxy
        finally:
            await runner.cleanup()


@pytest.fixture
def upstream() -> Upstream:
    """One for each test."""
    return Upstream()


class Client:
    """Calls as an SDK makes them, and checks what frames every answer."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(self, operation: str, body: Any, **more: Any) -> tuple[int, Any]:
        """Status and body of an answer whose checksum holds."""
        headers = {"X-Amz-Target": f"DynamoDB_20120810.{operation}"}
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        async with self._session.post(self._url, data=data, headers=headers, **more) as reply:
            answer = await reply.read()
            assert reply.headers["x-amz-crc32"] == str(crc32(answer))
            return reply.status, json.loads(answer)


@asynccontextmanager
async def client_of(proxy: Proxy, connections: int = 1) -> AsyncIterator[Client]:
    """A client with so many connections, which it keeps."""
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(session, f"http://127.0.0.1:{proxy.port}/")


def puts(count: int, table: str = "t") -> dict[str, list[Any]]:
    """So many puts to a table."""
    return {table: [{"PutRequest": {"Item": {"id": {"S": f"é{n}"}}}} for n in range(count)]}


async def test_without_faults_all_passes(upstream: Upstream) -> None:
    """Calls and answers are the same behind it as before it, chunked or not."""
    async with upstream.behind(Faults()) as proxy, client_of(proxy) as client:
        for upstream.chunked in (False, True):
            assert await client.call(GET, {"n": "é"}) == (200, ANSWER)
        assert upstream.came == [(GET, {"n": "é"})] * 2
        assert proxy.calls == {GET: 2}
        assert not proxy.injected


async def test_throttled_calls_never_arrive(upstream: Upstream) -> None:
    """A share of all calls, counted, on connections that stay; the same ones for a seed."""
    runs = []
    for _ in range(2):
        upstream.came.clear()
        async with (
            upstream.behind(Faults(throttle_rate=0.33), seed=7) as proxy,
            client_of(proxy) as client,
        ):
            seen = [await client.call(GET, {"n": number}) for number in range(300)]
        away = [n for n, (status, _) in enumerate(seen) if status == 400]
        assert all("ProvisionedThroughput" in seen[number][1]["__type"] for number in away)
        assert proxy.injected == {"throttled": len(away)}
        assert [body["n"] for _, body in upstream.came] == sorted(set(range(300)) - set(away))
        runs.append(away)
    assert 70 <= len(runs[0]) <= 130
    assert runs[0] == runs[1]


async def test_a_request_is_decided_on_once(upstream: Upstream) -> None:
    """However many pieces its body comes in, and whatever they begin with."""
    body = json.dumps({"text": "POST / HTTP/1.1\r\n\r\n" * 20}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"text": "'
        for _ in range(20):
            yield b"POST / HTTP/1.1 "
            await asyncio.sleep(0.001)
        yield b'"}'

    async with upstream.behind(Faults(throttle_rate=0.5)) as proxy, client_of(proxy) as client:
        for number in range(40):  # chunked, and by their length
            await client.call(GET, pieces() if number % 2 else body)
        assert proxy.calls == {GET: 40}
        assert proxy.injected["throttled"] + len(upstream.came) == 40
        assert 0 < len(upstream.came) < 40


async def test_a_batch_is_taken_in_part(upstream: Upstream) -> None:
    """What reached the server and what came back are the batch, for every size of the part."""
    batch = puts(3) | puts(2, "u")
    sizes = set()
    async with upstream.behind(Faults(unprocessed_rate=1.0)) as proxy, client_of(proxy) as client:
        held = 0
        for number in range(60):
            upstream.chunked = bool(number % 2)
            upstream.came.clear()
            status, answer = await client.call(
                BATCH, {"RequestItems": batch, "ReturnConsumedCapacity": "TOTAL"}
            )
            assert status == 200
            left = answer["UnprocessedItems"]
            taken = upstream.came[0][1]["RequestItems"] if upstream.came else {}
            for table, requests in batch.items():
                parts = taken.get(table, []), left.get(table, [])
                assert all(part == [r for r in requests if r in part] for part in parts)
                assert sorted(map(str, [*parts[0], *parts[1]])) == sorted(map(str, requests))
            assert all(body["ReturnConsumedCapacity"] == "TOTAL" for _, body in upstream.came)
            assert all([*left.values(), *taken.values()])  # no table without a request
            sizes.add(sum(map(len, taken.values())))
            held += sum(map(len, left.values()))
        assert sizes == set(range(5))  # none of them, too; all of them never
        assert proxy.injected == {"taken in part": 60, "items unprocessed": held}


async def test_what_the_server_left_comes_back_too(upstream: Upstream) -> None:
    """Its own UnprocessedItems are kept beside those that were held back."""
    upstream.busy = puts(1, "left") | puts(1)
    async with upstream.behind(Faults(unprocessed_rate=1.0)) as proxy, client_of(proxy) as client:
        for _ in range(10):
            upstream.came.clear()
            _, answer = await client.call(BATCH, {"RequestItems": puts(25)})
            if upstream.came:
                sent = len(upstream.came[0][1]["RequestItems"]["t"])
                assert answer["UnprocessedItems"]["left"] == upstream.busy["left"]
                assert len(answer["UnprocessedItems"]["t"]) == 25 - sent + 1


async def test_only_batches_are_divided(upstream: Upstream) -> None:
    """A read is not, nor is what is no call of DynamoDB's turned away."""
    faults = Faults(unprocessed_rate=1.0)
    async with upstream.behind(faults) as proxy, client_of(proxy) as client:
        assert await client.call(GET, {}) == (200, ANSWER)
        proxy.set(Faults(throttle_rate=1.0))
        async with aiohttp.request("POST", f"http://127.0.0.1:{proxy.port}/", data=b"{}") as reply:
            assert reply.status == 200
        assert not proxy.injected


async def test_a_client_that_waits_to_be_asked_is(upstream: Upstream) -> None:
    """`Expect: 100-continue`, of a call that passes, one in part, and one turned away."""
    async with upstream.behind(Faults()) as proxy, client_of(proxy) as client:
        assert await client.call(GET, {}, expect100=True) == (200, ANSWER)
        proxy.set(Faults(unprocessed_rate=1.0))
        _, answer = await client.call(BATCH, {"RequestItems": puts(9)}, expect100=True)
        assert answer["UnprocessedItems"]
        proxy.set(Faults(throttle_rate=1.0))
        status, _ = await client.call(GET, {}, expect100=True)
        assert status == 400


async def test_requests_sent_at_once_are_answered_in_order(upstream: Upstream) -> None:
    """What came with the end of one request is the start of the next."""
    one = (
        b"POST / HTTP/1.1\r\nHost: here\r\nX-Amz-Target: DynamoDB_20120810.GetItem\r\n"
        b"Content-Length: 8\r\n\r\n"
    )
    async with upstream.behind(Faults(throttle_rate=0.5)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"".join(one + b'{"n": %d}' % number for number in range(10)))
        writer.write_eof()
        answers = await reader.read()
        writer.close()
        assert answers.count(b"HTTP/1.1 ") == 10
        assert answers.count(b"HTTP/1.1 400") == proxy.injected["throttled"] > 0
        arrived = [body["n"] for _, body in upstream.came]
        assert arrived == sorted(arrived)
        assert len(arrived) == 10 - proxy.injected["throttled"]


async def test_a_server_that_closes_idle_connections_is_no_fault(upstream: Upstream) -> None:
    """The client's connection outlives the one behind it."""
    upstream.keep_alive_s = 0.5
    async with upstream.behind(Faults()) as proxy, client_of(proxy) as client:
        assert await client.call(GET, {}) == (200, ANSWER)
        await asyncio.sleep(0.8)
        assert await client.call(GET, {}) == (200, ANSWER)


@pytest.mark.parametrize("dynamodb", [True, False])
async def test_faults_of_connections(upstream: Upstream, dynamodb: bool) -> None:  # noqa: FBT001
    """Before any part a connection is delayed, cut, reset, refused or hung, and counted."""
    async with upstream.behind(Faults(latency_s=0.2), dynamodb=dynamodb) as proxy:

        async def call() -> tuple[int, Any]:
            async with client_of(proxy) as client:
                return await client.call(GET, {}, timeout=aiohttp.ClientTimeout(2))

        began = time.monotonic()
        assert await call() == (200, ANSWER)
        assert time.monotonic() - began >= 0.2
        assert proxy.injected["delayed"] > 0
        for faults, name, error in (
            (Faults(cut_rate=1.0), "cut", aiohttp.ClientPayloadError),
            (Faults(reset_rate=1.0), "reset", aiohttp.ClientError),
            (Faults(refuse=True), "refused", aiohttp.ClientError),
            (Faults(hang_rate=1.0), "hung", TimeoutError),
        ):
            proxy.set(faults)
            with pytest.raises(error):
                await call()
            assert proxy.injected[name] > 0
        arrived = len(upstream.came)
        proxy.set(Faults())
        assert await call() == (200, ANSWER)
        assert len(upstream.came) == arrived + 1


async def test_a_fault_that_cannot_be_is_refused(upstream: Upstream) -> None:
    """A proxy that passes on bytes alone does not pretend to know calls."""
    async with upstream.behind(Faults(), dynamodb=False) as proxy:
        for faults in (Faults(throttle_rate=0.1), Faults(unprocessed_rate=0.1)):
            with pytest.raises(ValueError, match="dynamodb=True"):
                proxy.set(faults)
