"""What one caller, or a stranger, can do to an API that others use: each goes on until cancelled.

`python -m tests.faults.attacks NAME` runs one, on the target that standard input describes, so that
its work is not the bystander's.
"""

import asyncio
import contextlib
import os
import resource
import socket
import sys
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Final

import jwt
import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa

from core.models import now, timestamp

MIB: Final = 2**20


class Target(msgspec.Struct, frozen=True):
    """The API, and who attacks it."""

    port: int
    token: str
    """An ordinary caller's."""
    operator: str
    """An operator's token, for event streams."""
    model: str
    dimension: int
    build_id: str
    """Of an open build, for event streams."""
    connections_max: int
    scale: float = 1.0
    """Of every count: less than 1 for a short form."""

    def count(self, full: int) -> int:
        """A number of connections, scaled."""
        return max(1, round(full * self.scale))


Attack = Callable[[Target], Awaitable[None]]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def head(target: Target, line: str, *more: str, token: str | None = None) -> bytes:
    """The header of a request."""
    lines = [f"{line} HTTP/1.1", "Host: k9.test", "Content-Type: application/json", *more]
    bearer = target.token if token is None else token
    if bearer:
        lines.append(f"Authorization: Bearer {bearer}")
    return "\r\n".join([*lines, "", ""]).encode()


async def connect(target: Target, number: int = 0) -> Stream:
    """A connection from an address of the attacker's own: 127.1.x.y."""
    source = f"127.1.{number // 250 % 250}.{number % 250 + 1}"
    return await asyncio.open_connection("127.0.0.1", target.port, local_addr=(source, 0))


async def again(act: Callable[[], Awaitable[object]], rest_s: float = 0.0) -> None:
    """Acts again and again, whatever the server does about it."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await act()
        await asyncio.sleep(rest_s)


async def many(target: Target, full: int, act: Callable[[int], Awaitable[object]]) -> None:
    """So many at once, each again and again."""
    async with asyncio.TaskGroup() as group:
        for number in range(target.count(full)):
            group.create_task(again(lambda number=number: act(number), 0.01))  # type: ignore[misc]


async def asked(target: Target, data: bytes) -> bytes:
    """Sends a request on a connection of its own, and reads all of the reply."""
    reader, writer = await connect(target)
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


def whole(target: Target, line: str, body: bytes, *more: str) -> bytes:
    """A request that is answered and ends its connection."""
    return head(target, line, f"Content-Length: {len(body)}", "Connection: close", *more) + body


async def trickled(target: Target, line: str, length: int, every_s: float, number: int) -> None:
    """A body that is announced, and comes a byte at a time."""
    reader, writer = await connect(target, number)
    try:
        writer.write(head(target, line, f"Content-Length: {length}") + b"{")
        while not reader.at_eof() and not writer.is_closing():
            await asyncio.sleep(every_s)
            writer.write(b" ")
            await writer.drain()
    finally:
        writer.close()


# --- bodies ---------------------------------------------------------------------------------------


async def broken_bodies(target: Target) -> None:
    """250 bodies broken off after one byte, and 250 more."""

    async def leave(_number: int) -> None:
        _, writer = await connect(target)
        writer.write(head(target, "POST /reports", "Content-Length: 100") + b"{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def burst() -> None:
        await asyncio.gather(
            *(leave(number) for number in range(target.count(250))), return_exceptions=True
        )

    await again(burst, 0.2)


async def announced_bodies(target: Target) -> None:
    """96, 96 and 64 MiB announced, and a byte a second of each."""
    lengths = (96 * MIB, 96 * MIB, 64 * MIB)
    await many(
        target,
        round(3 / target.scale),
        lambda number: trickled(target, "POST /reports", lengths[number % 3], 1.0, number),
    )


async def large_body(target: Target) -> None:
    """A report of 96 MiB, sent as fast as it is taken."""
    size = target.count(96) * MIB
    body = b'{"title": "' + b"x" * size + b'"}'
    await again(lambda: asked(target, whole(target, "POST /reports", body)), 0.1)


async def slow_bodies(target: Target) -> None:
    """300 bodies of a thousand bytes, each a byte a second."""
    await many(target, 300, lambda number: trickled(target, "POST /reports", 1000, 1.0, number))


async def deep_patches(target: Target) -> None:
    """Merge patches of 56 KiB at 97 levels, 20 at a time."""
    profile = b'{"name": "Mallory", "email": "m@k9.test"}'
    await asked(target, whole(target, "POST /users", profile))
    levels = 97
    deep = b'{"preferences":' + b'{"a":' * levels + b'"' + b"x" * (56 * 1024) + b'"' + b"}" * levels
    patch = whole(target, "PATCH /users/me", deep + b"}")
    await many(target, 20, lambda _: asked(target, patch))


# --- searches -------------------------------------------------------------------------------------


async def heavy_searches(target: Target) -> None:
    """300 exact searches of 256 vectors at a time."""
    vectors = np.random.default_rng(7).standard_normal((256, target.dimension))
    rows = [row.astype("<f4").tobytes() for row in vectors]
    body = msgspec.msgpack.encode({"vectors": rows, "k": 10, "exact": True})
    line = f"POST /models/{target.model}/search"
    search = whole(target, line, body).replace(b"application/json", b"application/msgpack")
    await many(target, 300, lambda _: asked(target, search))


async def made_up_watermarks(target: Target) -> None:
    """300 searches at a time that ask to reflect a write that never was."""

    async def wait(_number: int) -> None:
        made_up = msgspec.msgpack.encode([timestamp(now()), "no-such-product"])
        token = urlsafe_b64encode(made_up).rstrip(b"=").decode()
        vector = [1.0] * target.dimension
        body = msgspec.json.encode({"vector": vector, "min_watermark": token})
        await asked(target, whole(target, f"POST /models/{target.model}/search", body))

    await many(target, 300, wait)


# --- connections, keys, streams -------------------------------------------------------------------


async def idle_connections(target: Target) -> None:
    """Connections that say nothing, as many as are let in, and new ones for those that end."""

    async def idle(number: int) -> None:
        reader, writer = await connect(target, number)
        try:
            await reader.read()
        finally:
            writer.close()

    await many(target, target.connections_max + 100, idle)


async def unread_replies(target: Target) -> None:
    """100 connections that ask for large replies, and read none."""
    vectors = np.random.default_rng(8).standard_normal((10, target.dimension)).tolist()
    body = msgspec.json.encode({"vectors": vectors, "k": 1000})
    line = f"POST /models/{target.model}/search"
    request = head(target, line, f"Content-Length: {len(body)}") + body
    loop = asyncio.get_running_loop()

    async def ask(_number: int) -> None:
        made = socket.socket()
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.setblocking(False)
            await loop.sock_connect(made, ("127.0.0.1", target.port))
            while True:
                await loop.sock_sendall(made, request)
                await asyncio.sleep(0.2)
        finally:
            made.close()

    await many(target, 100, ask)


async def unknown_keys(target: Target) -> None:
    """50 requests at a time whose tokens name keys that nobody has."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    async def ask(_number: int) -> None:
        token = jwt.encode({"sub": "m"}, key, algorithm="RS256", headers={"kid": token_hex(8)})
        await asked(target, head(target, "GET /models", "Connection: close", token=token))

    await many(target, 50, ask)


async def event_streams(target: Target) -> None:
    """64 streams of one operator, and another for each that ends."""
    line = f"GET /builds/{target.build_id}/events"
    request = head(target, line, "Accept: text/event-stream", token=target.operator)
    await many(target, 64, lambda _: asked(target, request))


ATTACKS: Final[dict[str, Attack]] = {
    "bodies broken off": broken_bodies,
    "announced bodies": announced_bodies,
    "one large body": large_body,
    "slow bodies": slow_bodies,
    "heavy searches": heavy_searches,
    "made-up watermarks": made_up_watermarks,
    "deep merge patches": deep_patches,
    "idle connections": idle_connections,
    "replies never read": unread_replies,
    "unknown keys, key server hung": unknown_keys,
    "event streams": event_streams,
}
HUNG: Final = frozenset({"unknown keys, key server hung"})
"""Attacks during which the key server hangs."""


def main(name: str) -> None:
    """Attacks until it is ended."""
    os.nice(19)  # the processor that it shares with the bystander is not what it attacks
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    target = msgspec.json.decode(sys.stdin.buffer.read(), type=Target)
    sys.stdout.write("begins\n")
    sys.stdout.flush()
    asyncio.run(_attack(ATTACKS[name], target))


async def _attack(attack: Attack, target: Target) -> None:
    await attack(target)


if __name__ == "__main__":
    main(sys.argv[1])
