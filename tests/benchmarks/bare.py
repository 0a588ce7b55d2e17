"""K9's own HTTP server without an application: what a reply of a size costs before any work.

    python -m tests.benchmarks.bare PORT BYTES

Answers every request with so many bytes of JSON's media type, until it is ended.
"""

import argparse
import asyncio
from typing import Any, Final

import uvloop

from api.server.listener import Server, bound_socket
from core.settings import Http

STARTED: Final = {"lifespan.startup": "lifespan.startup.complete"}
STOPPED: Final = {"lifespan.shutdown": "lifespan.shutdown.complete"}


async def serve(port: int, size: int) -> None:
    """Serves on a port of the loopback."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(size).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    text = b'{"x":"' + b"x" * (size - 8) + b'"}'
    body = {"type": "http.response.body", "body": text, "more_body": False}

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in (STARTED, STOPPED):
                kind = (await receive())["type"]
                await send({"type": (STARTED | STOPPED)[kind]})
            return
        await send(start)
        await send(body)

    http = Http(port=port)
    with bound_socket(http, port, "PORT") as bound:
        await Server(answer, http, started=asyncio.Event().set).serve([bound])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("bytes", type=int)
    given = parser.parse_args()
    uvloop.run(serve(given.port, given.bytes))
