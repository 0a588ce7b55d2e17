"""Idempotency keys' promises, on every emulator: one effect and one answer, whoever dies."""

import asyncio
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, exists, expressions, key, missing
from core.errors import (
    ConditionFailed,
    FieldError,
    InFlight,
    KeyReused,
    TransactionFailed,
    Unavailable,
)
from core.models import Report, User
from core.repositories import transactions
from core.repositories.idempotency import Claim, IdempotencyRepository, StoredResult, completion
from core.repositories.transactions import refused
from core.repositories.users import UserRepository
from core.results import DeletedReport, Refusal
from core.settings import Settings

MOMENT = "2025-01-01T00:00:00.000000Z"
RESULT = Report("1", "ada", "é", MOMENT, MOMENT, favorites=("b", "a"), version=10**37)
STORED = StoredResult(RESULT, "json")
KEY = "key"


class Cut(Dynamo):
    """A client that loses answers: what was asked for happens, and its caller never hears."""

    def __init__(self, dynamo: Dynamo) -> None:
        super().__init__(None, deadline_s=1)
        self.dynamo = dynamo
        self.again = False
        """Whether the client's own retry sends the same once more, and gives that answer."""
        self.operation = ""

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Passes the call on."""
        reply = await self.dynamo.call(operation, **parameters)
        if operation == self.operation:
            if not self.again:
                raise Unavailable("the answer was lost")
            return await self.dynamo.call(operation, **parameters)
        return reply


@pytest.fixture
def records(dynamo: Dynamo, settings: Settings) -> IdempotencyRepository:
    """The repository under test."""
    return IdempotencyRepository(dynamo, settings)


@pytest.fixture
def caller() -> str:
    """A caller of this test's own."""
    return f"user/{uuid4().hex}"


def with_times(
    dynamo: Dynamo, settings: Settings, *, lease_s: float = 30.0, ttl_s: int = 86400
) -> IdempotencyRepository:
    """The repository with a lease and a time to live of its own."""
    records = msgspec.structs.replace(
        settings.records, idempotency_lease_s=lease_s, idempotency_ttl_s=ttl_s
    )
    return IdempotencyRepository(dynamo, msgspec.structs.replace(settings, records=records))


async def claimed(records: IdempotencyRepository, caller: str, print_: str = "f") -> Claim:
    """The claim on the key."""
    claim = await records.begin(caller, KEY, print_)
    assert isinstance(claim, Claim)
    return claim


async def test_a_result_is_given_again(records: IdempotencyRepository, caller: str) -> None:
    """As it was, however often, and with the media type that it was first answered in."""
    await records.complete(await claimed(records, caller), RESULT)
    assert [await records.begin(caller, KEY, "f") for _ in range(2)] == [STORED, STORED]
    for result in (DeletedReport(), Refusal("Invalid", "no", (FieldError("k", "is odd"),))):
        claim = await records.begin(caller, type(result).__name__, "f", "msgpack")
        assert isinstance(claim, Claim)
        await records.complete(claim, result)
        again = await records.begin(caller, type(result).__name__, "f", "json")
        assert again == StoredResult(result, "msgpack")


async def test_another_request_is_refused(records: IdempotencyRepository, caller: str) -> None:
    """While the first is in flight, after it was answered, and after it was given up."""
    claim = await claimed(records, caller)
    with pytest.raises(KeyReused):
        await records.begin(caller, KEY, "g")
    await records.release(claim)
    with pytest.raises(KeyReused):
        await records.begin(caller, KEY, "g")
    await records.complete(await claimed(records, caller), RESULT)
    with pytest.raises(KeyReused):
        await records.begin(caller, KEY, "g")


async def test_a_request_in_flight_is_not_joined(
    records: IdempotencyRepository, caller: str
) -> None:
    """Whoever comes while it is answered is told so; of many at once one may act."""
    begun = await asyncio.gather(
        *(records.begin(caller, KEY, "f") for _ in range(8)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in begun) == ["Claim", *["InFlight"] * 7]


async def test_keys_of_two_callers_never_meet(records: IdempotencyRepository, caller: str) -> None:
    """Nor do those of a caller whose name begins like another's."""
    await records.complete(await claimed(records, caller), RESULT)
    for other in (f"{caller}2", caller[:-1], caller.upper()):
        assert isinstance(await records.begin(other, KEY, "g"), Claim)


async def test_a_lease_that_ended_is_taken_over(
    dynamo: Dynamo, settings: Settings, records: IdempotencyRepository, caller: str
) -> None:
    """Then the first one completes nothing, neither by itself nor with an effect."""
    first = await claimed(with_times(dynamo, settings, lease_s=0.001), caller)
    await asyncio.sleep(0.02)
    second = await claimed(records, caller)
    with pytest.raises(InFlight):
        await records.complete(first, RESULT)
    await records.release(first)  # which gives nothing free that is another's
    with pytest.raises(InFlight):
        await records.begin(caller, KEY, "f")
    users = UserRepository(dynamo, settings)
    user = User(uuid4().hex, MOMENT, MOMENT)
    with pytest.raises(InFlight):
        await users.create_user(user, completion(first, RESULT))
    await users.create_user(user, completion(second, RESULT))
    assert await records.begin(caller, KEY, "f") == STORED


async def test_a_crash_after_the_effect_leaves_its_answer(
    dynamo: Dynamo, settings: Settings, caller: str
) -> None:
    """Both are one transaction: even where its answer was lost, so that the claim is given up."""
    cut = Cut(dynamo)
    cut.operation = "transact_write_items"
    records, users = IdempotencyRepository(cut, settings), UserRepository(cut, settings)
    claim = await claimed(records, caller)
    with pytest.raises(Unavailable):
        await users.create_user(User(uuid4().hex, MOMENT, MOMENT), completion(claim, RESULT))
    await records.release(claim)
    assert await records.begin(caller, KEY, "f") == STORED


async def test_a_crash_before_the_effect_blocks_for_the_lease_alone(
    dynamo: Dynamo, settings: Settings, caller: str
) -> None:
    """And an effect that fails leaves no answer."""
    records = with_times(dynamo, settings, lease_s=0.3)
    first = await claimed(records, caller)
    with pytest.raises(InFlight):
        await records.begin(caller, KEY, "f")
    with pytest.raises(TransactionFailed) as failed:
        await transactions.transact(
            dynamo,
            transactions.check(
                settings.table(tables.USERS.name), key(user_id="nobody"), exists("user_id")
            ),
            *completion(first, RESULT),
        )
    assert [refused(failed.value, place) for place in range(2)] == [True, False]
    await asyncio.sleep(0.35)
    assert (await claimed(records, caller)).token != first.token


async def test_what_failed_here_is_free_at_once(
    records: IdempotencyRepository, caller: str
) -> None:
    """A claim that is given up waits for no lease; one that was completed stays completed."""
    claim = await claimed(records, caller)
    await records.release(claim)
    await asyncio.sleep(0.002)
    again = await claimed(records, caller)
    await records.complete(again, RESULT)
    await records.release(again)
    assert await records.begin(caller, KEY, "f") == STORED


async def test_an_expired_key_is_as_good_as_new(
    dynamo: Dynamo, settings: Settings, records: IdempotencyRepository, caller: str
) -> None:
    """For any request, once its time is over, though the row is still there."""
    brief = with_times(dynamo, settings, ttl_s=1)
    await brief.complete(await claimed(brief, caller), RESULT)
    await asyncio.sleep(1.1)
    begun = await asyncio.gather(
        *(records.begin(caller, KEY, "g") for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in begun) == ["Claim", *["InFlight"] * 3]


async def test_parts_of_an_effect_are_noted_once(
    dynamo: Dynamo, settings: Settings, records: IdempotencyRepository, caller: str
) -> None:
    """A later claim is told of them, and no claim notes one twice."""
    claim = await claimed(records, caller)
    assert claim.checkpoints == frozenset()
    for name in ("0", "99"):
        await transactions.transact(dynamo, claim.checkpoint(name))
    with pytest.raises(TransactionFailed):
        await transactions.transact(dynamo, claim.checkpoint("99"))
    await records.release(claim)
    await asyncio.sleep(0.002)
    later = await claimed(records, caller)
    assert later.checkpoints == {"0", "99"}
    with pytest.raises(TransactionFailed):
        await transactions.transact(dynamo, claim.checkpoint("198"))
    await transactions.transact(dynamo, later.checkpoint("198"))


async def test_an_expired_key_has_noted_nothing(
    dynamo: Dynamo, settings: Settings, caller: str
) -> None:
    """Parts that were stored more than the key's time ago are to be stored again."""
    brief = with_times(dynamo, settings, ttl_s=1, lease_s=0.01)
    claim = await claimed(brief, caller)
    await transactions.transact(dynamo, claim.checkpoint("0"))
    await asyncio.sleep(1.1)
    assert (await claimed(brief, caller)).checkpoints == frozenset()


async def test_an_answer_that_was_lost_on_the_way(
    dynamo: Dynamo, settings: Settings, caller: str
) -> None:
    """The client's own second try finds what its first one did, and takes it for its own."""
    cut = Cut(dynamo)
    cut.operation, cut.again = "update_item", True
    records = IdempotencyRepository(cut, settings)
    claim = await claimed(records, caller)
    await records.complete(claim, RESULT)
    assert await records.begin(caller, KEY, "f") == STORED


async def test_a_transaction_tells_which_part_was_refused(
    dynamo: Dynamo, settings: Settings
) -> None:
    """And brings the row that the part met, or none where there is none."""
    table = settings.table(tables.USERS.name)
    user_id = uuid4().hex
    with pytest.raises(TransactionFailed) as failed:
        await transactions.transact(
            dynamo,
            transactions.check(table, key(user_id=f"{user_id}-"), missing("user_id")),
            transactions.update(
                table, key(user_id=user_id), Update(set={"name": "x"}), exists("user_id")
            ),
        )
    assert [refused(failed.value, place) for place in range(3)] == [False, True, False]
    assert failed.value.items[1] is None
    await transactions.transact(dynamo, transactions.put(table, key(user_id=user_id)))
    with pytest.raises(TransactionFailed) as failed:
        await transactions.transact(
            dynamo, transactions.put(table, key(user_id=user_id), missing("user_id"))
        )
    there = failed.value.items[0]
    assert there is not None
    assert there["user_id"].S == user_id
    with pytest.raises(ConditionFailed):
        await dynamo.call(
            "delete_item",
            TableName=table,
            Key=key(user_id=user_id),
            **expressions(condition=missing("user_id")),
        )
