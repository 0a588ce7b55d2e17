"""Several API processes on one port: what each says of itself, and what is answered for all.

Each process listens on a socket of its own in a directory that only they can enter. Whichever of
them takes a request on the port for operations asks all of them, itself too.
"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
from prometheus_client import REGISTRY, Metric
from prometheus_client.registry import Collector

from api.http.context import request_id_of
from api.http.problems import Reply, problem_reply
from core.errors import Unavailable

METRICS: Final = "/metrics"
LIVE: Final = "/health/live"
READY: Final = "/health/ready"
_ANSWER_S: Final = 2.0
"""For a process's answer; one that takes longer is taken for hung."""
_PASSED_ON: Final = (b"accept", b"authorization", b"x-request-id")
_END: Final = b"# EOF\n"
"""Of the OpenMetrics format."""
_OK: Final = 200


class Answer(msgspec.Struct, frozen=True):
    """What one process answered."""

    status: int
    content_type: str
    body: bytes


class Siblings:
    """The processes of one port, by number from 0."""

    def __init__(self, directory: Path, count: int) -> None:
        """Takes a directory for their sockets, which exists."""
        self._directory = directory
        self._count = count

    def bind(self, number: int) -> socket.socket:
        """The socket of a process, in place of the one that an earlier process left."""
        path = self._path(number)
        path.unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(str(path))
        bound.setblocking(False)
        return bound

    def leave(self, number: int) -> None:
        """Removes the socket of a process that ends, and the directory after the last."""
        self._path(number).unlink(missing_ok=True)
        with suppress(OSError):  # others are there
            self._directory.rmdir()

    def remove(self) -> None:
        """Removes what processes that were killed have left."""
        shutil.rmtree(self._directory, ignore_errors=True)

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[ASGIApp]:
        """What answers on the port for operations, until the end of the block."""
        async with AsyncExitStack() as stack:
            timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
            sessions = []
            for number in range(self._count):
                # A kept connection may be of a process that has died.
                connector = aiohttp.UnixConnector(str(self._path(number)), force_close=True)
                session = aiohttp.ClientSession(
                    connector=connector, timeout=timeout, auto_decompress=False
                )
                sessions.append(await stack.enter_async_context(session))
            yield _OfAll(sessions)

    def _path(self, number: int) -> Path:
        return self._directory / str(number)


class ProcessMetrics(Collector):
    """The metrics of this process, with its number as a label."""

    def __init__(self, number: int) -> None:
        self._number = str(number)

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        for metric in REGISTRY.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, "process": self._number})
                for sample in metric.samples
            ]
            yield metric


class _OfAll:
    """The ASGI application that asks every process."""

    def __init__(self, sessions: list[aiohttp.ClientSession]) -> None:
        self._sessions = sessions

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answers for all of them."""
        reply = await self._reply(scope)  # type: ignore[arg-type]
        await reply.send(send, request_id_of(b""))

    async def _reply(self, scope: HTTPScope) -> Reply:
        path = scope["path"]
        if path not in {METRICS, LIVE, READY}:
            return problem_reply(HTTPException(status_code=404))
        headers = [
            (k.decode(), v.decode("latin-1")) for k, v in scope["headers"] if k in _PASSED_ON
        ]
        asked = (self._ask(session, path, headers) for session in self._sessions)
        found = list(enumerate(await asyncio.gather(*asked)))
        answers = [answer for _, answer in found if isinstance(answer, Answer)]
        hung = [str(number) for number, answer in found if isinstance(answer, TimeoutError)]
        if path == LIVE and hung:
            return problem_reply(Unavailable(f"API processes do not answer: {', '.join(hung)}"))
        if not answers:
            return problem_reply(Unavailable("no API process answers"))
        good = [answer for answer in answers if answer.status == _OK]
        if path == METRICS and good:
            return _reply(good[0], merged(answer.body for answer in good))
        first = (good or answers)[0]
        return _reply(first, first.body)

    async def _ask(
        self, session: aiohttp.ClientSession, path: str, headers: list[tuple[str, str]]
    ) -> Answer | Exception:
        """Its answer, a TimeoutError of one that hangs, another error of one that is not there."""
        try:
            async with session.get(f"http://process{path}", headers=headers) as reply:
                body = await reply.read()
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            return error
        return Answer(reply.status, reply.headers.get("Content-Type", ""), body)


def _reply(answer: Answer, body: bytes) -> Reply:
    return Reply(answer.status, body, answer.content_type)


def merged(expositions: Iterable[bytes]) -> bytes:
    """One exposition of several: each family once, with the samples of all.

    Args:
        expositions: In the same format, Prometheus' own or OpenMetrics.
    """
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    end = b""
    for text in expositions:
        end = _END if text.endswith(_END) else b""
        for family in (b"\n" + text.removesuffix(_END)).split(b"\n# HELP ")[1:]:
            lines = [line for line in family.split(b"\n") if line]
            name = lines[0].partition(b" ")[0]
            header = [b"# HELP " + lines[0], *(x for x in lines[1:] if x.startswith(b"#"))]
            _, samples = families.setdefault(name, (header, []))
            samples += [x for x in lines[1:] if not x.startswith(b"#")]
    return (
        b"".join(
            line + b"\n" for header, samples in families.values() for line in (*header, *samples)
        )
        + end
    )
