"""The requests of `http_search`, and wrk (Debian's package), which sends them in order.

Every kind goes through 20,000 distinct queries, none of them a row, or as many products.
"""

import asyncio
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import numpy as np

from core.vectors.arrays import Floats, json_floats
from tests.benchmarks.stock import Catalogue

MODEL: Final = "searched"
WRITTEN: Final = "written"
QUERIES: Final = 20_000
K: Final = 10
K_BEYOND: Final = 30
"""More than a matrix has by default."""
TOGETHER: Final = 256
"""Vectors of a request that has many."""
CONNECTIONS: Final = 16
CONNECTIONS_OF: Final = {"many": 2}
"""A request of 256 vectors takes 40 ms or more: sixteen at once take turns for a second."""
CLIENT_CORE: Final = 1
_LUA: Final = """
local requests, count, at = {{}}, 0, 0
local file = assert(io.open("{path}", "rb"))
while true do
  local length = file:read(8)
  if length == nil then break end
  count = count + 1
  requests[count] = file:read(tonumber(length, 16))
end
request = function() at = at % count + 1; return requests[at] end
done = function(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  local form = 'RESULT {{"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": %d}}\\n'
  io.write(string.format(form, summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), failed))
end
"""


class Measured(msgspec.Struct, frozen=True):
    """One turn of one kind of request."""

    requests: int
    us: int
    p50: int
    p99: int
    errors: int
    """Replies that are not 2xx or 3xx, and requests without a reply."""

    @property
    def each_us(self) -> float:
        """Microseconds a request, which on one saturated core is its cost."""
        return self.us / max(1, self.requests)


class Request(msgspec.Struct, frozen=True):
    """A request of one kind."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def queries_of(rows: Catalogue) -> Floats:
    """float32 (QUERIES, d): each a row moved a good way towards another one."""
    generator = np.random.default_rng(17)
    all_rows = np.stack(list(rows.values()))
    one, other = generator.integers(0, len(all_rows), (2, QUERIES))
    mixed: Floats = np.float32(0.8) * all_rows[one] + np.float32(0.2) * all_rows[other]
    return mixed


def requests_of(rows: Catalogue, queries: Floats) -> dict[str, list[Request]]:
    """Every kind of request, QUERIES of each."""
    json_type = (("Content-Type", "application/json"),)
    packed = tuple((name, "application/msgpack") for name in ("Content-Type", "Accept"))
    path = f"/models/{MODEL}/search"
    names = np.random.default_rng(19).choice(list(rows), QUERIES).tolist()
    plain = [json_floats(query) for query in queries]

    def searches(bodies: list[Any]) -> list[Request]:
        return [Request("POST", path, msgspec.json.encode(b), json_type) for b in bodies]

    return {
        "empty": [Request("GET", "/health/live")],
        "json": searches([{"vector": vector, "k": K} for vector in plain]),
        "msgpack": [
            Request("POST", path, msgspec.msgpack.encode({"vector": q.tobytes(), "k": K}), packed)
            for q in queries
        ],
        "product id": searches([{"product_id": name, "k": K} for name in names]),
        "beyond": searches([{"product_id": name, "k": K_BEYOND} for name in names]),
        "many": [
            Request("POST", path, msgspec.msgpack.encode({"vectors": part, "k": K}), packed)
            for part in batched([query.tobytes() for query in queries])
        ],
        "neighbors": [
            Request("GET", f"/models/{MODEL}/products/{quote(name, safe='')}/neighbors?k={K}")
            for name in names
        ],
        "put": [
            Request(
                "PUT",
                f"/models/{WRITTEN}/embeddings/p{number}",
                msgspec.json.encode({"vector": vector}),
                json_type,
            )
            for number, vector in enumerate(plain)
        ],
    }


def batched(vectors: list[bytes]) -> list[list[bytes]]:
    """The vectors of each request that has many; a part that is left over is left out."""
    ends = range(TOGETHER, len(vectors) + 1, TOGETHER)
    return [vectors[end - TOGETHER : end] for end in ends]


def raw(one: Request, port: int, token: str) -> bytes:
    """A request as it is sent."""
    length = [("Content-Length", str(len(one.body)))] if one.body else []
    headers = [("Host", f"127.0.0.1:{port}"), ("Authorization", f"Bearer {token}"), *length]
    lines = [f"{one.method} {one.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in [*headers, *one.headers]]
    return "\r\n".join([*lines, "", ""]).encode() + one.body


def write_script(
    directory: Path, kind: str, port: int, tokens: str | Sequence[str], made: list[Request]
) -> Path:
    """A wrk script that sends these requests in order, over and over; several tokens take turns."""
    data = directory / f"{port}-{kind.replace(' ', '-')}"
    given = cycle([tokens] if isinstance(tokens, str) else tokens)
    with data.open("wb") as file:
        for one, token in zip(made, given, strict=False):
            sent = raw(one, port, token)
            file.write(b"%08x" % len(sent) + sent)
    script = data.with_suffix(".lua")
    script.write_text(_LUA.format(path=data))
    return script


async def run_wrk(script: Path, port: int, seconds: float, kind: str = "") -> Measured:
    """One turn of a kind of request."""
    connections = CONNECTIONS_OF.get(kind, CONNECTIONS)
    words = ["taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", f"-c{connections}"]
    words += [f"-d{max(1, round(seconds))}s", "-s", str(script), f"http://127.0.0.1:{port}/"]
    said = await output(*words)
    line = next(text for text in said.splitlines() if text.startswith("RESULT "))
    return msgspec.json.decode(line.removeprefix("RESULT "), type=Measured)


async def output(*words: str) -> str:
    """What a command prints; ends this one where it fails."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise SystemExit(f"{words[3]} failed: {err.decode(errors='replace')[-2000:]}")
    return out.decode()
