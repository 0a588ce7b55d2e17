"""Searches that the gate refuses, and the connections on which they came."""

from math import inf
from typing import Any

import msgspec

from api.server.gate import Gate
from api.server.heads import BODY_BYTES_MAX
from tests.api.conftest import Service
from tests.api.test_connections import LIVE, PLAIN, SEARCH, alive, ended
from tests.api.wire import Stream, at_end, closed, listening, reply_of, request


class Shut(Gate):
    """Refuses every search."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.standing = True
        self._full_last = inf

    def refuses(self, authorization: bytes) -> bool:
        """Always."""
        return True


async def test_a_search_that_the_gate_refuses_is_a_problem(service: Service) -> None:
    """The connection goes on, also where the search was sent ahead or its body comes later."""
    token, page = service.pool.token(), "https://shop.example"
    search = request(SEARCH, token, PLAIN, "X-Request-Id: mine", f"Origin: {page}")
    parsed = request(SEARCH + "?x=y", token, PLAIN, "X-Request-Id: mine", f"Origin: {page}")
    held, rest = search[:-20], search[-20:]
    async with listening(service, gate_class=Shut, cors_origins=(page,)) as listener:
        stream = await listener.connect()
        for sent, expected in (
            (search + search + LIVE, [503, 503, 200]),
            (LIVE + search + search + LIVE, [200, 503, 503, 200]),
            (parsed, [503]),
            (held, [503]),
            (rest[:5], []),
            (rest[5:] + LIVE, [200]),
            (held, [503]),
            (rest + search[:60], []),
            (search[60:] + LIVE, [503, 200]),
        ):
            stream[1].write(sent)
            for each in expected:
                status, headers, body = await reply_of(stream)
                assert status == each
                if status == 503:
                    assert msgspec.json.decode(body)["type"] == "overloaded"
                    assert headers["content-type"] == "application/problem+json"
                    assert headers["retry-after"] == "1"
                    assert headers["x-request-id"] == "mine"
                    assert headers["access-control-allow-origin"] == page
                    assert headers["cache-control"] == "no-store"
                    assert {"date", "connection"} & headers.keys() == {"date"}
        await closed(stream[1])


async def test_no_form_of_its_path_gets_a_search_past_the_gate(service: Service) -> None:
    """Whatever the router takes for it: escapes, and slashes that are too many."""
    token = service.pool.token()
    path = SEARCH.removeprefix("POST ")
    async with listening(service) as free, listening(service, gate_class=Shut) as full:
        for form in (
            path.replace("search", "%73earch"),
            path + "/",
            "/" + path,
            path.replace("/search", "//search"),
        ):
            for listener, expected in (free, {200, 409}), (full, {503}):
                stream = await listener.connect()
                stream[1].write(request(f"POST {form}", token, PLAIN))
                assert (await reply_of(stream))[0] in expected, form
                await closed(stream[1])


async def test_a_refused_search_ends_its_connection_where_it_must(service: Service) -> None:
    """Asked to, over a body that is large or has no length, and while the server drains."""
    token = service.pool.token()
    search = request(SEARCH, token, PLAIN)
    async with listening(service, gate_class=Shut) as listener:
        for sent in (
            request(SEARCH, token, PLAIN, "Connection: close"),
            request(SEARCH, token, b"", f"Content-Length: {BODY_BYTES_MAX + 1}") + PLAIN,
            request(SEARCH, token, b"", "Transfer-Encoding: chunked") + b"5\r\nabcde\r\nno length",
            request(SEARCH, token, b"", "Expect: 100-continue", "Content-Length: 23"),
        ):
            assert await refused_and_closed(await listener.connect(), sent)
        held, kept = await listener.connect(), await listener.connect()
        held[1].write(search[:-5])
        assert (await reply_of(held))[0] == 503
        assert await alive(kept)
        listener.server.drain()
        assert await refused_and_closed(kept, search)
        held[1].write(search[-5:])
        assert await refused_and_closed(held, search)


async def refused_and_closed(stream: Stream, sent: bytes) -> bool:
    """Whether what is sent is answered by a refusal, and that by the end of the connection."""
    stream[1].write(sent)
    status, headers, _ = await reply_of(stream)
    return (status, headers["connection"], await at_end(stream)) == (503, "close", b"")


async def test_a_refused_search_whose_body_never_comes_is_idle(service: Service) -> None:
    """It ends as an idle connection does."""
    idle = ended("idle")
    async with listening(service, gate_class=Shut, idle_timeout_s=1) as listener:
        stream = await listener.connect()
        stream[1].write(request(SEARCH, service.pool.token(), PLAIN)[:-5])
        assert (await reply_of(stream))[0] == 503
        assert await at_end(stream) == b""
    assert ended("idle") == idle + 1
