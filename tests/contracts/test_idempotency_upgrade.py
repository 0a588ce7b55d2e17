"""Idempotency keys during a rolling upgrade: processes of 23e14f8 run beside those of today."""

import asyncio
from uuid import uuid4

import pytest

from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, expressions, key
from core.errors import InFlight, KeyReused
from core.repositories.idempotency import Claim, IdempotencyRepository, StoredReply, StoredResult
from core.results import DeletedReport
from core.settings import Settings
from tests.contracts.earlier_idempotency import EarlierClaim, EarlierIdempotency, Kept
from tests.contracts.test_idempotency_repository import with_times

KEY = "key"


@pytest.fixture
def today(dynamo: Dynamo, settings: Settings) -> IdempotencyRepository:
    """The repository of today."""
    return IdempotencyRepository(dynamo, settings)


@pytest.fixture
def earlier(dynamo: Dynamo, settings: Settings) -> EarlierIdempotency:
    """The repository of 23e14f8."""
    return EarlierIdempotency(dynamo, settings)


@pytest.fixture
def caller() -> str:
    """A caller of this test's own."""
    return f"user/{uuid4().hex}"


async def completed(records: IdempotencyRepository, caller: str) -> None:
    """Completes a request."""
    claim = await records.begin(caller, KEY, "f")
    assert isinstance(claim, Claim)
    await records.complete(claim, DeletedReport())


async def test_a_result_is_a_request_in_flight_to_an_earlier_process(
    dynamo: Dynamo, settings: Settings, earlier: EarlierIdempotency, caller: str
) -> None:
    """Which does not take it over after its lease, and so has no second effect."""
    today = with_times(dynamo, settings, lease_s=0.001)
    await completed(today, caller)
    await asyncio.sleep(0.02)
    for _ in range(2):
        with pytest.raises(InFlight):
            await earlier.begin(caller, KEY, "f")
    with pytest.raises(KeyReused):
        await earlier.begin(caller, KEY, "g")
    assert await today.begin(caller, KEY, "f") == StoredResult(DeletedReport(), "json")


async def test_an_expired_result_is_a_free_key_to_an_earlier_process(
    dynamo: Dynamo, settings: Settings, earlier: EarlierIdempotency, caller: str
) -> None:
    """As any record is once its time is over."""
    await completed(with_times(dynamo, settings, ttl_s=1), caller)
    await asyncio.sleep(1.1)
    assert isinstance(await earlier.begin(caller, KEY, "g"), EarlierClaim)


async def test_the_reply_of_an_earlier_process_is_replayed(
    today: IdempotencyRepository, earlier: EarlierIdempotency, caller: str
) -> None:
    """Byte for byte."""
    claim = await earlier.begin(caller, KEY, "f")
    assert isinstance(claim, EarlierClaim)
    await earlier.finish(claim, Kept(201, "application/json", b"{\xff}", ["etag", '"1"']))
    reply = StoredReply(201, "application/json", b"{\xff}", ["etag", '"1"'])
    assert await today.begin(caller, KEY, "f") == reply
    with pytest.raises(KeyReused):
        await today.begin(caller, KEY, "g")


async def test_each_takes_over_what_the_other_left(
    dynamo: Dynamo,
    settings: Settings,
    today: IdempotencyRepository,
    earlier: EarlierIdempotency,
    caller: str,
) -> None:
    """After the lease; who lost its claim completes nothing."""
    table = settings.table("idempotency")
    ended = expressions(update=Update(set={"lease_until_ms": 0}))

    async def lease_ends() -> None:
        await dynamo.call("update_item", TableName=table, Key=key(caller=caller, key=KEY), **ended)

    first = await today.begin(caller, KEY, "f")
    assert isinstance(first, Claim)
    with pytest.raises(InFlight):
        await earlier.begin(caller, KEY, "f")
    await lease_ends()
    assert isinstance(await earlier.begin(caller, KEY, "f"), EarlierClaim)
    with pytest.raises(InFlight):
        await today.begin(caller, KEY, "f")
    with pytest.raises(InFlight):
        await today.complete(first, DeletedReport())
    await lease_ends()
    last = await today.begin(caller, KEY, "f")
    assert isinstance(last, Claim)
    await today.complete(last, DeletedReport())
    with pytest.raises(InFlight):
        await earlier.begin(caller, KEY, "f")


async def test_a_result_of_a_later_release_is_in_flight(
    dynamo: Dynamo, settings: Settings, today: IdempotencyRepository, caller: str
) -> None:
    """What cannot be read here is neither replayed nor done a second time."""
    await completed(today, caller)
    await dynamo.call(
        "update_item",
        TableName=settings.table("idempotency"),
        Key=key(caller=caller, key=KEY),
        **expressions(update=Update(set={"result": '{"type":"not-known-yet"}'})),
    )
    with pytest.raises(InFlight):
        await today.begin(caller, KEY, "f")
