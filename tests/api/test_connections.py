"""Connections: which stay, which end, and what the others notice of it."""

import asyncio
import socket
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from api.server.listener import operations
from tests.api.conftest import MODEL, Service
from tests.api.serving import DIMENSION, vector
from tests.api.test_malformed import statuses
from tests.api.wire import (
    ALL_S,
    Listener,
    Stream,
    at_end,
    closed,
    listening,
    reply_of,
    request,
    small_window,
)
from tests.emulators import free_port

LIVE = request("GET /health/live")
SEARCH = f"POST /models/{MODEL}/search"
PLAIN = b'{"product_id": "plain"}'


def counted(name: str, **labels: str) -> float:
    """A metric as it stands."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def ended(cause: str) -> float:
    """How many connections ended for a cause."""
    return counted("k9_http_connections_ended_total", cause=cause)


async def until_counted(name: str, value: float, **labels: str) -> None:
    """Waits until a metric has reached a value."""
    async with asyncio.timeout(ALL_S):
        while counted(name, **labels) < value:  # noqa: ASYNC110 - a metric has no event
            await asyncio.sleep(0.01)


_BACKGROUND = {"event loop stalled", "index in use"}
"""What is logged while others keep the machine busy, or have an index loaded."""


async def alive(stream: Stream) -> bool:
    """Whether a connection answers."""
    try:
        stream[1].write(LIVE)
        return (await reply_of(stream))[0] == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


# --- callers who leave ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/reports", f"/models/{MODEL}/search", "/users"])
async def test_a_caller_who_leaves_in_mid_body_is_no_error(service: Service, path: str) -> None:
    """It is a 499 in the metrics, and no line in the log."""
    route = path.replace(MODEL, "{model_version}")
    labels = {"method": "POST", "route": route, "status": "499"}
    head = request(f"POST {path}", service.pool.token(), b"", "Content-Length: 100")
    async with listening(service) as listener:
        before = counted("k9_http_requests_total", **labels)
        with capture_logs() as lines:
            for _ in range(20):
                _, writer = await listener.connect()
                writer.write(head + b"{")
                await writer.drain()
                await closed(writer)
            await until_counted("k9_http_requests_total", before + 20, **labels)
        assert [line for line in lines if line["event"] not in _BACKGROUND] == []
        context = listener.app.context
        assert context is not None
        assert context.admission.buffered.in_use == 0


# --- what HTTP/1.1 has ----------------------------------------------------------------------------


async def test_a_connection_answers_one_request_after_another(service: Service) -> None:
    """Sent one by one, or ahead: in order, HEAD without a body, and a body of any size."""
    token = service.pool.token("operators")
    async with listening(service) as listener:
        stream = await listener.connect()
        for _ in range(3):
            stream[1].write(request(SEARCH, token, PLAIN))
            assert (await reply_of(stream))[0] == 200
        head = request("HEAD /models", token)
        stream[1].write(head + request(SEARCH, token, PLAIN) + request("GET /nothing", token))
        async with asyncio.timeout(ALL_S):
            headers = await stream[0].readuntil(b"\r\n\r\n")
        assert headers.startswith(b"HTTP/1.1 200")
        assert (await reply_of(stream))[0] == 200
        assert (await reply_of(stream))[0] == 404
        rows = [{"product_id": f"w-{n}", "vector": [0.123456789] * DIMENSION} for n in range(1000)]
        batch = "POST /models/m-wire/embeddings:batch"
        stream[1].write(request(batch, token, msgspec.json.encode({"embeddings": rows})))
        assert (await reply_of(stream))[0] == 200
        stream[1].write(request("GET /health/live", "", b"", "Connection: close"))
        assert (await reply_of(stream))[1]["connection"] == "close"
        assert await at_end(stream) == b""


async def test_a_client_that_asks_first_is_told_to_go_on(service: Service) -> None:
    """Or what is wrong, after which the connection ends: its body may come all the same."""
    more = ("Expect: 100-continue", f"Content-Length: {len(PLAIN)}")
    async with listening(service) as listener:
        stream = await listener.connect()
        stream[1].write(request(SEARCH, service.pool.token(), b"", *more))
        async with asyncio.timeout(ALL_S):
            assert await stream[0].readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        stream[1].write(PLAIN)
        assert (await reply_of(stream))[0] == 200
        stream[1].write(request(SEARCH, "", b"", *more))
        status, headers, _ = await reply_of(stream)
        assert (status, headers["connection"]) == (401, "close")
        stream[1].write(PLAIN + LIVE)
        assert await at_end(stream) == b""


async def test_requests_sent_far_ahead_are_not_taken(service: Service) -> None:
    """Those before are answered, and the connection ends."""
    held = request(SEARCH, service.pool.token(), b"", "Content-Length: 23")
    async with listening(service) as listener:
        stream = await listener.connect()
        stream[1].write(held)
        stream[1].write(PLAIN + LIVE * 1000)
        found = statuses(await at_end(stream))
    assert found[0] == 200
    assert found[-1] == 429
    assert 1 < len(found) < 100


# --- limits ---------------------------------------------------------------------------------------


async def test_idle_connections_to_the_limit_keep_nobody_out(service: Service) -> None:
    """Those that wait give way: first those that never sent a request."""
    replaced = ended("replaced")
    async with listening(service, connections_max=20) as listener:
        mine = await listener.connect("127.0.0.9")
        assert await alive(mine)
        idle = [await listener.connect("127.0.0.2") for _ in range(60)]
        await until_counted("k9_http_connections_ended_total", replaced + 41, cause="replaced")
        assert await alive(mine)
        late = await listener.connect("127.0.0.9")
        assert await alive(late)
        assert listener.server.table.all.count == 20
        for stream in (mine, late, *idle):
            await closed(stream[1])
        await listener.until_open(0)


async def test_an_address_has_a_share(service: Service) -> None:
    """Over it, its own oldest idle connection goes; with all of them busy it is 429."""
    held = request(SEARCH, service.pool.token(), b"", "Content-Length: 100") + b"{"
    async with listening(service, connections_per_address_max=4) as listener:
        other = await listener.connect("127.0.0.3")
        idle = [await listener.connect() for _ in range(4)]
        busy = [await listener.connect() for _ in range(4)]
        assert [await at_end(stream) for stream in idle] == [b""] * 4
        for stream in busy:
            stream[1].write(held)
        async with asyncio.timeout(ALL_S):
            while len(listener.server.table.all.fresh) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        refused = await at_end(await listener.connect())
        assert statuses(refused) == [429]
        assert b"retry-after" in refused
        assert await alive(other)
        for stream in (other, *busy):
            await closed(stream[1])
        await listener.until_open(0)


async def test_a_header_that_does_not_come_ends_the_connection(service: Service) -> None:
    """From a new connection, one that was answered, and one that sends it byte by byte."""
    async with listening(service, header_timeout_s=0.2) as listener:
        assert await at_end(await listener.connect()) == b""
        answered = await listener.connect()
        assert await alive(answered)
        answered[1].write(LIVE[:20])
        assert await at_end(answered) == b""
        slow = await listener.connect()

        async def trickle() -> None:
            while True:
                slow[1].write(b"G")
                await asyncio.sleep(0.05)

        writing = asyncio.create_task(trickle())
        assert b" 200 " not in await at_end(slow)
        writing.cancel()


async def test_a_connection_that_rests_too_long_is_closed(service: Service) -> None:
    """After its last reply."""
    async with listening(service, idle_timeout_s=1.0) as listener:
        stream = await listener.connect()
        assert await alive(stream)
        assert await at_end(stream) == b""


async def _unread(listener: Listener, token: str) -> socket.socket:
    """A client that asks for much, and reads nothing."""
    found = small_window(listener.port)
    body = msgspec.json.encode({"vectors": [vector(1).tolist()] * 150, "k": 60})
    asked = request(SEARCH, token, body)
    await asyncio.get_running_loop().sock_sendall(found, asked * 8)
    return found


async def test_replies_that_are_never_read_end_the_connection(service: Service) -> None:
    """By time, and earlier where there are too many bytes of them."""
    token = service.pool.token()
    for cause, limits in (
        ("write", {"write_timeout_s": 0.5}),
        ("unread", {"unread_bytes_max": 400_000}),
    ):
        before = ended(cause)
        async with listening(service, **limits) as listener:
            held = [await _unread(listener, token) for _ in range(4)]
            gone = 4 if cause == "write" else 1
            await until_counted("k9_http_connections_ended_total", before + gone, cause=cause)
            stream = await listener.connect()
            assert await alive(stream)
            await closed(stream[1])
            for made in held:
                made.close()
            await listener.until_open(0)
            context = listener.app.context
            assert context is not None
            async with asyncio.timeout(ALL_S):
                while context.admission.requests:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)


async def test_a_slow_reader_gets_its_reply(service: Service) -> None:
    """All of it, in order, though it takes longer than the time for a stall."""
    body = msgspec.json.encode({"vectors": [vector(1).tolist()] * 150, "k": 60})
    asked = request(SEARCH, service.pool.token(), body)
    async with listening(service, write_timeout_s=0.5) as listener:
        made = small_window(listener.port)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(made, asked * 4)
        got = b""
        async with asyncio.timeout(ALL_S):
            while got.count(b'"watermark"') < 4:
                part = await loop.sock_recv(made, 65536)
                assert part
                got += part
                await asyncio.sleep(0.01)
        made.close()
    assert statuses(got) == [200] * 4


# --- proxies --------------------------------------------------------------------------------------


async def test_behind_a_trusted_proxy_the_share_is_the_clients(service: Service) -> None:
    """The proxy itself has none, and what a client says of itself is not believed."""
    token = service.pool.token()

    def held(forwarded: str) -> bytes:
        more = (f"X-Forwarded-For: {forwarded}", "Content-Length: 100")
        return request(SEARCH, token, b"", *more) + b"{"

    async with listening(
        service, connections_per_address_max=2, trusted_proxies=("127.0.0.0/8",)
    ) as listener:
        busy = [await listener.connect() for _ in range(4)]
        for number, stream in enumerate(busy):
            stream[1].write(held(f"9.9.9.{number}, 203.0.113.7:1234, 127.0.0.5"))
        assert [(await reply_of(stream))[0] for stream in busy[2:]] == [429, 429]
        other = await listener.connect()
        other[1].write(request(SEARCH, token, PLAIN, "X-Forwarded-For: 203.0.113.8"))
        assert (await reply_of(other))[0] == 200
        for stream in (other, *busy):
            await closed(stream[1])
        await listener.until_open(0)
        later = await listener.connect()
        later[1].write(request(SEARCH, token, PLAIN, "X-Forwarded-For: 203.0.113.7"))
        assert (await reply_of(later))[0] == 200
        await closed(later[1])


# --- operations, and the end ----------------------------------------------------------------------


async def test_operations_have_a_port_that_clients_cannot_take(service: Service) -> None:
    """With every connection of the API busy, health and metrics are answered, and nothing else."""
    held = request(SEARCH, service.pool.token(), b"", "Content-Length: 100") + b"{"
    port = free_port()
    async with listening(service, connections_max=4, metrics_port=port) as listener:
        busy = [await listener.connect() for _ in range(4)]
        for stream in busy:
            stream[1].write(held)
        async with asyncio.timeout(ALL_S):
            while listener.server.table.all.fresh:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        refused = await at_end(await listener.connect())
        assert statuses(refused) == [503]
        assert b'"overloaded"' in refused
        context = listener.app.context
        assert context is not None
        limits: Any = context.settings.http
        async with (
            operations(listener.app, limits),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            lost = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
            assert (await client.get("/health/live")).status_code == 200
            ready = await client.get("/health/ready")
            assert ready.status_code in {200, 503}
            assert set(ready.json()) == {"status", "dependencies"}
            assert "k9_http_connections 4.0" in (await client.get("/metrics")).text
            for path in ("/models", "/openapi.json", "/"):
                assert (await client.get(path)).status_code == 404
            for _, writer in lost:
                await closed(writer)
        for stream in busy:
            await closed(stream[1])


async def test_a_stop_answers_what_was_begun(service: Service) -> None:
    """A request whose body, or whose header, is half there; idle connections are closed."""
    token = service.pool.token()
    whole = request(SEARCH, token, PLAIN)
    async with listening(service) as listener:
        idle, body, header = [await listener.connect() for _ in range(3)]
        assert await alive(idle)
        body[1].write(whole[:-5])
        header[1].write(whole[:30])
        async with asyncio.timeout(ALL_S):
            while len(listener.server.table.all.fresh) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        listener.server.stop()
        assert await at_end(idle) == b""
        body[1].write(whole[-5:])
        header[1].write(whole[30:])
        for stream in (body, header):
            status, headers, _ = await reply_of(stream)
            assert (status, headers["connection"]) == (200, "close")
            assert await at_end(stream) == b""
