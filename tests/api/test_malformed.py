"""What is not HTTP/1.1, or could be taken in two ways, is a 400 and the end of the connection."""

import msgspec
import pytest

from tests.api.conftest import MODEL, Service
from tests.api.wire import Listener, closed, listening, reply_of, request

HOST = b"Host: k9.test\r\n"
POST = b"POST /models HTTP/1.1\r\n" + HOST
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: k9.test\r\n\r\n"
"""A second request, which must not be answered."""

MALFORMED: dict[str, bytes] = {
    "no request": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n" + HOST + b"\r\n",
    "a made-up method": b"GE(T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path with a space": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT k9.test:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health/live HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "a field without a name": b"GET / HTTP/1.1\r\n" + HOST + b": x\r\n\r\n",
    "a field without a colon": b"GET / HTTP/1.1\r\n" + HOST + b"nothing\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 5\r\n\r\nhello",
    "a folded field": POST + b"X: a\r\n b\r\nContent-Length\r\n : 5\r\n\r\nhello",
    "a null byte": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "a lone carriage return": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rY: b\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": POST + b"Content-Length: -5\r\n\r\nhello",
    "a length in hex": POST + b"Content-Length: 0x5\r\n\r\nhello",
    "a length without end": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nhello",
    "a length and chunks": POST
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "another coding first": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    "chunked twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a disguised coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding with a tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /models HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


def statuses(data: bytes) -> list[int]:
    """The status of each reply in what came."""
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def assert_refused(data: bytes, status: int = 400) -> None:
    """Checks that the last reply is a problem with an id, after which the connection closes."""
    head, _, body = data.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert first.startswith(str(status))
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert int(headers["content-length"]) == len(body)
    problem = msgspec.json.decode(body)
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]


@pytest.fixture(scope="module")
async def listener(service: Service):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """One listener for all of these."""
    async with listening(service) as made:
        yield made


@pytest.mark.parametrize("kind", MALFORMED)
async def test_what_is_not_http_is_a_problem(listener: Listener, kind: str) -> None:
    """And a request that could hide behind it is not answered."""
    data = await listener.send(MALFORMED[kind] + HIDDEN)
    assert statuses(data) == [400]
    assert_refused(data)


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}xx0\r\n\r\n",
        b"2 \r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"f" * 40 + b"\r\n{}",
        b"2\r\n{}\r\n0\r\nbad trailer\r\n\r\n",
        b"2;" + b"x" * 2_000_000 + b"\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nx: " + b"y" * 2_000_000 + b"\r\n\r\n",
    ],
)
@pytest.mark.parametrize("apart", [False, True])
async def test_a_malformed_chunk_is_a_problem(
    listener: Listener, service: Service, chunks: bytes, *, apart: bool
) -> None:
    """With the caller's own request id, whether it comes with the header or later."""
    more = ("Transfer-Encoding: chunked", "X-Request-Id: mine")
    path = f"POST /models/{MODEL}/search"
    head = request(path, service.pool.token(), b"", *more)
    parts = (head, chunks, HIDDEN) if apart else (head + chunks + HIDDEN,)
    stream = await listener.connect()
    reader, writer = stream
    for part in parts:
        writer.write(part)
    status, headers, body = await reply_of(stream)
    assert await reader.read() == b""
    await closed(writer)
    assert (status, headers["x-request-id"], headers["connection"]) == (400, "mine", "close")
    assert headers["content-type"] == "application/problem+json"
    assert msgspec.json.decode(body)["type"] == "unreadable"


async def test_what_came_before_is_answered_first(listener: Listener, service: Service) -> None:
    """Of requests sent ahead, the good ones are answered in order, and the bad one ends it."""
    good = request(f"POST /models/{MODEL}/search", service.pool.token(), b'{"product_id": "plain"}')
    data = await listener.send(good + good + b"GET / HTTP/1.1\r\n\r\n" + HIDDEN)
    assert statuses(data) == [200, 200, 400]
    assert_refused(data)


async def test_a_header_has_a_size(listener: Listener) -> None:
    """One of many fields, of one long field, or of a path without end is 431."""
    start = b"GET /health/live HTTP/1.1\r\n" + HOST
    many = b"".join(b"X-%d: y\r\n" % number for number in range(200))
    assert_refused(await listener.send(start + many + b"\r\n"), 431)
    for endless in (start + b"X: " + b"y" * 2_000_000, b"GET /" + b"y" * 2_000_000):
        stream = await listener.connect()
        stream[1].write(endless)
        status, _, _ = await reply_of(stream)
        assert status == 431
        await closed(stream[1])


async def test_a_trailer_says_nothing(listener: Listener, service: Service) -> None:
    """A token, a length or a media type after the body is not taken for the request's own."""
    late = (
        b"POST /models/m/search HTTP/1.1\r\nHost: k9.test\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n2\r\n{}\r\n0\r\n"
        b"Authorization: Bearer " + service.pool.token().encode() + b"\r\n\r\n"
    )
    assert statuses(await listener.send(late)) == [401]


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
async def test_another_protocol_is_not_taken_up(listener: Listener, upgrade: str) -> None:
    """The request is answered as HTTP/1.1, and what follows it is dropped."""
    more = (
        f"Upgrade: {upgrade}",
        "Connection: Upgrade, HTTP2-Settings",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    data = await listener.send(request("GET /health/live", "", b"", *more) + HIDDEN)
    assert statuses(data) == [200]
