"""Hints that rows changed: heard by all who follow, and never in the way of who leaves them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from uuid import uuid4

import msgspec

from core import telemetry
from core.hints import IDS_MAX, Hint, Hints, open_hints
from core.settings import Settings
from tests.scripted import HANG, ScriptedServer


def _settings(valkey: str) -> Settings:
    return Settings(environment=f"h-{uuid4().hex[:8]}", redis_url=valkey)


@asynccontextmanager
async def _heard(hints: Hints) -> AsyncIterator["asyncio.Queue[Hint | None]"]:
    """What is heard, from the moment it is."""
    queue: asyncio.Queue[Hint | None] = asyncio.Queue()

    async def follow() -> None:
        async for hint in hints.follow():
            queue.put_nowait(hint)

    task = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(20):
            assert await queue.get() is None
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _next(queue: "asyncio.Queue[Hint | None]") -> Hint | None:
    async with asyncio.timeout(10):
        return await queue.get()


def _lost() -> float:
    value: float = telemetry.HINTS_LOST.labels("not sent")._value.get()  # noqa: SLF001
    return value


async def test_a_hint_is_heard_by_everyone_who_follows(valkey: str) -> None:
    """With the model version and the ids; many of them come in parts."""
    settings = _settings(valkey)
    ids = [f"grüße/{number}" for number in range(2 * IDS_MAX + 1)]
    async with (
        open_hints(settings) as one,
        open_hints(settings) as two,
        _heard(one) as first,
        _heard(two) as second,
    ):
        one.changed("m", ids)
        for queue in (first, second):
            hints = [await _next(queue) for _ in range(3)]
            assert [i for hint in hints if hint for i in hint.product_ids] == ids
            assert {hint.model_version for hint in hints if hint} == {"m"}


async def test_environments_do_not_hear_each_other(valkey: str) -> None:
    """The channel carries the environment's name."""
    async with (
        open_hints(_settings(valkey)) as one,
        open_hints(_settings(valkey)) as two,
        _heard(one) as mine,
    ):
        two.changed("m", ["theirs"])
        one.changed("m", ["mine"])
        hint = await _next(mine)
        assert hint is not None
        assert hint.product_ids == ("mine",)


async def test_a_process_that_ends_sends_what_waits(valkey: str) -> None:
    """As an import does, that ends with its last batch."""
    settings = _settings(valkey)
    async with open_hints(settings) as one, _heard(one) as queue:
        async with open_hints(settings) as two:
            two.changed("m", ["last"])
        hint = await _next(queue)
        assert hint is not None
        assert hint.product_ids == ("last",)


async def test_what_is_no_hint_is_passed_over(valkey: str) -> None:
    """Whoever can write to Redis must not stop the following."""
    settings = _settings(valkey)
    async with open_hints(settings) as hints, _heard(hints) as queue:
        channel = f"k9:{settings.environment}:changes:v1"
        no_text = msgspec.msgpack.encode(["m", ["ab"], 1]).replace(b"ab", b"\xff\xfe")
        for data in (b"", b"\xc1", msgspec.msgpack.encode(["m"]), b"\x91" * 100_000, no_text):
            await hints._redis.publish(channel, data)  # noqa: SLF001
        await hints._redis.publish(  # noqa: SLF001
            channel, msgspec.msgpack.encode(["m", ["later"], 1, "of a newer process"])
        )
        hint = await _next(queue)
        assert hint == Hint("m", ("later",), 1)


async def test_ids_that_no_product_has_are_left_out(valkey: str) -> None:
    """DynamoDB would refuse to look for them, and for all that are asked for beside them."""
    settings = _settings(valkey)
    async with open_hints(settings) as hints, _heard(hints) as queue:
        channel = f"k9:{settings.environment}:changes:v1"
        ids = ["", "x" * 3000, "good", *(f"p{number}" for number in range(2 * IDS_MAX))]
        await hints._redis.publish(channel, msgspec.msgpack.encode(Hint("m", tuple(ids), 1)))  # noqa: SLF001
        hint = await _next(queue)
        assert hint is not None
        assert hint.product_ids[0] == "good"
        assert len(hint.product_ids) == IDS_MAX - 2


async def test_a_broken_connection_is_made_anew_and_told(valkey: str) -> None:
    """Hints may have been missed then, so the listener hears of it."""
    settings = _settings(valkey)
    async with open_hints(settings) as hints, _heard(hints) as queue:
        await hints._redis.client_kill_filter(_type="pubsub")  # noqa: SLF001
        assert await _next(queue) is None
        hints.changed("m", ["after"])
        hint = await _next(queue)
        assert hint is not None
        assert hint.product_ids == ("after",)


async def test_leaving_hints_costs_nothing_where_redis_is_away() -> None:
    """It returns at once, whether the connection is refused or hangs, and the loss is counted."""
    hanging = ScriptedServer(HANG)
    async with hanging.listening() as url:
        for address in ("redis://127.0.0.1:9/0", url.replace("http", "redis")):
            settings = msgspec.structs.replace(_settings(address), hint_timeout_s=0.1)
            before = _lost()
            async with open_hints(settings) as hints:
                began = perf_counter()
                for number in range(300):
                    hints.changed("m", [str(number)])
                assert perf_counter() - began < 0.05
                await asyncio.sleep(0.3)
                assert _lost() - before == 300


async def test_hints_that_wait_are_bounded() -> None:
    """What is too much is lost, and counted."""
    before = _lost()
    async with open_hints(_settings("redis://127.0.0.1:9/0")) as hints:
        for start in range(0, 50_000, 1000):
            hints.changed("m", [str(number) for number in range(start, start + 1000)])
        assert _lost() - before == 30_000
