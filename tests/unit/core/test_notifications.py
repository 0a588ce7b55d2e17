"""Change notifications reach every subscriber, and never delay who publishes them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import msgspec

from core import telemetry
from core.notifications import IDS_MAX, ChangeNotification, ChangeNotifier, open_notifier
from core.settings import Settings
from tests.scripted import HANG, ScriptedServer

Received = asyncio.Queue[ChangeNotification | None]


def _settings(valkey: str) -> Settings:
    return Settings(environment=f"h-{uuid4().hex[:8]}", redis_url=valkey)


@asynccontextmanager
async def _received(notifier: ChangeNotifier) -> AsyncIterator[Received]:
    """What a subscriber receives, once it is subscribed."""
    queue: asyncio.Queue[ChangeNotification | None] = asyncio.Queue()

    async def receive() -> None:
        async for notification in notifier.subscribe():
            queue.put_nowait(notification)

    task = asyncio.create_task(receive())
    try:
        async with asyncio.timeout(20):
            assert await queue.get() is None
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _next(queue: Received) -> ChangeNotification | None:
    async with asyncio.timeout(10):
        return await queue.get()


def _lost() -> float:
    value: float = telemetry.NOTIFICATIONS_LOST.labels("not sent")._value.get()  # noqa: SLF001
    return value


async def test_every_subscriber_receives_a_notification(valkey: str) -> None:
    """With the model version and the ids; many of them come in parts."""
    settings = _settings(valkey)
    ids = [f"grüße/{number}" for number in range(2 * IDS_MAX + 1)]
    async with (
        open_notifier(settings) as one,
        open_notifier(settings) as two,
        _received(one) as first,
        _received(two) as second,
    ):
        one.publish("m", ids)
        for queue in (first, second):
            received = [await _next(queue) for _ in range(3)]
            assert [i for one in received if one for i in one.product_ids] == ids
            assert {one.model_version for one in received if one} == {"m"}


async def test_environments_do_not_receive_each_others(valkey: str) -> None:
    """The channel carries the environment's name."""
    async with (
        open_notifier(_settings(valkey)) as one,
        open_notifier(_settings(valkey)) as two,
        _received(one) as mine,
    ):
        two.publish("m", ["theirs"])
        one.publish("m", ["mine"])
        notification = await _next(mine)
        assert notification is not None
        assert notification.product_ids == ("mine",)


async def test_a_process_that_ends_sends_what_waits(valkey: str) -> None:
    """As an import does, that ends with its last batch."""
    settings = _settings(valkey)
    async with open_notifier(settings) as one, _received(one) as queue:
        async with open_notifier(settings) as two:
            two.publish("m", ["last"])
        notification = await _next(queue)
        assert notification is not None
        assert notification.product_ids == ("last",)


async def test_other_messages_are_skipped(valkey: str) -> None:
    """Whoever can write to Redis must not stop the following."""
    settings = _settings(valkey)
    async with open_notifier(settings) as notifier, _received(notifier) as queue:
        channel = f"k9:{settings.environment}:changes:v1"
        no_text = msgspec.msgpack.encode(["m", ["ab"], 1]).replace(b"ab", b"\xff\xfe")
        for data in (b"", b"\xc1", msgspec.msgpack.encode(["m"]), b"\x91" * 100_000, no_text):
            await notifier._redis.publish(channel, data)  # noqa: SLF001
        await notifier._redis.publish(  # noqa: SLF001
            channel, msgspec.msgpack.encode(["m", ["later"], 1, False, "of a newer process"])
        )
        notification = await _next(queue)
        assert notification == ChangeNotification("m", ("later",), 1)


async def test_changed_attributes_are_told_from_changed_rows(valkey: str) -> None:
    """In the order in which they were published; what earlier releases send is of rows."""
    settings = _settings(valkey)
    async with open_notifier(settings) as notifier, _received(notifier) as queue:
        notifier.publish("m", ["a"])
        notifier.publish("m", ["a", "b"], attributes_only=True)
        received = [await _next(queue), await _next(queue)]
        assert [
            (each.product_ids, each.attributes_only) for each in received if each is not None
        ] == [(("a",), False), (("a", "b"), True)]
        earlier = msgspec.msgpack.encode(["m", ["c"], 1])
        await notifier._redis.publish(f"k9:{settings.environment}:changes:v1", earlier)  # noqa: SLF001
        last = await _next(queue)
        assert last is not None
        assert not last.attributes_only


async def test_ids_that_no_product_has_are_left_out(valkey: str) -> None:
    """DynamoDB would refuse to look for them, and for all that are asked for beside them."""
    settings = _settings(valkey)
    async with open_notifier(settings) as notifier, _received(notifier) as queue:
        channel = f"k9:{settings.environment}:changes:v1"
        ids = ["", "x" * 3000, "good", *(f"p{number}" for number in range(2 * IDS_MAX))]
        message = msgspec.msgpack.encode(ChangeNotification("m", tuple(ids), 1))
        await notifier._redis.publish(channel, message)  # noqa: SLF001
        notification = await _next(queue)
        assert notification is not None
        assert notification.product_ids[0] == "good"
        assert len(notification.product_ids) == IDS_MAX - 2


async def test_a_broken_connection_is_replaced_and_reported(valkey: str) -> None:
    """Changes may have been missed then, so the subscriber is told."""
    settings = _settings(valkey)
    async with open_notifier(settings) as notifier, _received(notifier) as queue:
        await notifier._redis.client_kill_filter(_type="pubsub")  # noqa: SLF001
        assert await _next(queue) is None
        notifier.publish("m", ["after"])
        notification = await _next(queue)
        assert notification is not None
        assert notification.product_ids == ("after",)


async def test_publishing_waits_for_nothing_while_redis_is_away() -> None:
    """Whether the connection is refused or hangs, what is not sent in time is counted as lost."""
    hanging = ScriptedServer(HANG)
    async with hanging.listening() as url:
        for address in ("redis://127.0.0.1:9/0", url.replace("http", "redis")):
            settings = msgspec.structs.replace(_settings(address), hint_timeout_s=0.1)
            before = _lost()
            async with open_notifier(settings) as notifier:
                for number in range(300):
                    notifier.publish("m", [str(number)])
                async with asyncio.timeout(20):
                    while _lost() - before < 300:  # noqa: ASYNC110 - a counter announces nothing
                        await asyncio.sleep(0.02)
                assert _lost() - before == 300


async def test_waiting_notifications_are_bounded() -> None:
    """What is too much is lost, and counted."""
    before = _lost()
    async with open_notifier(_settings("redis://127.0.0.1:9/0")) as notifier:
        for start in range(0, 50_000, 1000):
            notifier.publish("m", [str(number) for number in range(start, start + 1000)])
        assert _lost() - before == 30_000
