"""One build on a real `k9 dev` that sends its traces to a receiver: what is sent, as a tree."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import numpy as np

from deploy.local.files import RunningStack
from tests.e2e.dev import run_in, running_dev
from tests.observability.receiver import Receiver, Span, receiving

MODEL = "traced"
REQUEST_ID = "request-of-the-trace"
ROWS = 300
_BUILD_S = 60.0


@dataclass(frozen=True)
class Traced:
    """What a run left."""

    build_id: str
    spans: list[Span]
    """All of them."""
    logs: dict[str, str]
    """Of API and worker."""

    @property
    def build(self) -> list[Span]:
        """Those of the trace that the request of the build began."""
        root = next(span for span in self.spans if _asks(span))
        return [span for span in self.spans if span.trace_id == root.trace_id]


def _asks(span: Span) -> bool:
    return not span.parent_id and span.attributes.get("k9.request_id") == REQUEST_ID


async def run(directory: Path) -> Traced:
    """Stores rows and builds an index of them, by HTTP; then stops everything."""
    with receiving() as receiver:
        build_id = await _build(directory, receiver)
    logs = {name: (directory / ".k9/logs" / f"{name}.log").read_text() for name in LOGS}
    return Traced(build_id, receiver.spans, logs)


LOGS = ("api", "worker")


async def _build(directory: Path, receiver: Receiver) -> str:
    rows = np.random.default_rng(0).standard_normal((ROWS, 16)).astype("<f4")
    entries = [{"product_id": f"p{n}", "vector": row.tolist()} for n, row in enumerate(rows)]
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    async with running_dev(directory, "--empty", **environ) as dev:
        await dev.until("ready in")
        stack = msgspec.json.decode((directory / ".k9/stack.json").read_bytes(), type=RunningStack)
        _, token, _ = await run_in(directory, "token", "--operator")
        headers = {"authorization": f"Bearer {token.strip()}"}
        base = stack.environ["K9_URL"]
        async with aiohttp.ClientSession(base, headers=headers) as session:
            batch = f"/models/{MODEL}/embeddings:batch"
            async with session.post(batch, json={"embeddings": entries}) as reply:
                assert reply.status == 200, await reply.text()
            own = {"x-request-id": REQUEST_ID}
            async with session.post(f"/models/{MODEL}/builds", json={}, headers=own) as reply:
                assert reply.status == 202, await reply.text()
                build_id: str = (await reply.json())["build_id"]
            async with asyncio.timeout(_BUILD_S), session.get(f"/builds/{build_id}/events") as live:
                last = [line async for line in live.content if line.startswith(b"data: ")][-1]
            assert msgspec.json.decode(last[6:])["status"] == "published", last
    return build_id


def tree(spans: list[Span]) -> Iterator[tuple[int, Span]]:
    """The spans of a trace, parents before children, siblings by their start; with their depth."""
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda each: each.start_ns):
        children.setdefault(span.parent_id, []).append(span)

    def below(span_id: str, depth: int) -> Iterator[tuple[int, Span]]:
        for span in children.get(span_id, ()):
            yield depth, span
            yield from below(span.span_id, depth + 1)

    yield from below("", 0)
