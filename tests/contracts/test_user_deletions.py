"""Deletions of users: who has one, what it removes, and what it must not touch."""

import asyncio
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import key
from core.dynamo.wire import AttributeValue
from core.errors import InFlight, LeaseLost, NotFound, Unavailable
from core.models import Report, User
from core.repositories import transactions
from core.repositories.idempotency import Claim, IdempotencyRepository, StoredResult, completion
from core.repositories.reports import ReportRepository
from core.repositories.user_deletions import REMOVALS_MAX, UserDeletion, UserDeletionRepository
from core.repositories.users import UserRepository
from core.results import DeletedReport
from core.settings import Settings

MOMENT = "2025-01-01T00:00:00.000000Z"
RESULT = DeletedReport()
STORED = StoredResult(RESULT, "json")


@pytest.fixture
def deletions(dynamo: Dynamo, settings: Settings) -> UserDeletionRepository:
    """The repository under test."""
    return UserDeletionRepository(dynamo, settings)


@pytest.fixture
def short(dynamo: Dynamo, settings: Settings) -> UserDeletionRepository:
    """The same, with leases that have ended once they are there."""
    building = msgspec.structs.replace(settings.building, lease_s=0.001)
    return UserDeletionRepository(dynamo, msgspec.structs.replace(settings, building=building))


@pytest.fixture
def reports(dynamo: Dynamo, users: UserRepository, settings: Settings) -> ReportRepository:
    """Reports to remove."""
    return ReportRepository(dynamo, users, settings)


@pytest.fixture
def records(dynamo: Dynamo, settings: Settings) -> IdempotencyRepository:
    """Answers to remove."""
    return IdempotencyRepository(dynamo, settings)


@pytest.fixture
async def marked(users: UserRepository) -> str:
    """A user of this test's own, marked for deletion."""
    user = User(uuid4().hex, MOMENT, MOMENT, name="Ada")
    await users.create_user(user)
    await users.mark_user(user.user_id, MOMENT)
    return user.user_id


async def claimed(deletions: UserDeletionRepository, user_id: str) -> UserDeletion:
    """A claim that must succeed."""
    deletion = await deletions.claim(user_id)
    assert deletion is not None
    return deletion


async def removed(deletions: UserDeletionRepository, deletion: UserDeletion, removals: Any) -> int:
    """Removes all that is found; the number of rows."""
    rows = 0
    async for parts in removals:
        await deletions.remove(deletion, parts)
        rows += len(parts)
    return rows


async def test_one_worker_has_a_deletion(deletions: UserDeletionRepository, marked: str) -> None:
    """Of several at once one claims it; another may once it is given back."""
    made = await asyncio.gather(*(deletions.claim(marked) for _ in range(5)))
    [first] = [deletion for deletion in made if deletion is not None]
    assert await deletions.claim(marked) is None
    await deletions.renew(first)
    await deletions.release(first)
    second = await claimed(deletions, marked)
    await deletions.release(first)
    assert await deletions.claim(marked) is None
    await deletions.finish(second)
    assert await deletions.claim(marked) is None


async def test_a_lease_that_ran_out_is_taken_over(
    deletions: UserDeletionRepository,
    short: UserDeletionRepository,
    reports: ReportRepository,
    users: UserRepository,
    marked: str,
) -> None:
    """Whoever had it removes nothing any more, the profile neither."""
    report = Report(uuid4().hex, marked, "t", MOMENT, MOMENT)
    other = uuid4().hex
    await users.create_user(User(other, MOMENT, MOMENT))
    await reports.create_report(msgspec.structs.replace(report, user_id=other))
    await users.mark_user(other, MOMENT)
    first = await claimed(short, other)
    second: UserDeletion | None = None
    async with asyncio.timeout(10):
        while second is None:
            second = await deletions.claim(other)
    [parts] = [parts async for parts in reports.removals(other)]
    for attempt in (
        deletions.renew(first),
        deletions.remove(first, parts),
        deletions.finish(first),
    ):
        with pytest.raises(LeaseLost):
            await attempt
    assert (await reports.get_report(report.id, other)).title == "t"
    await deletions.remove(second, parts)
    await deletions.finish(second)
    with pytest.raises(NotFound):
        await users.get_user(other)


@pytest.mark.parametrize("marked_again", [False, True])
async def test_a_claim_is_of_one_mark(
    deletions: UserDeletionRepository,
    reports: ReportRepository,
    users: UserRepository,
    marked: str,
    marked_again: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """It removes nothing of a profile that was made anew, even if that is marked too by then."""
    first = await claimed(deletions, marked)
    await deletions.finish(first)
    await users.create_user(User(marked, MOMENT, MOMENT, name="Eve"))
    report = Report(uuid4().hex, marked, "t", MOMENT, MOMENT)
    await reports.create_report(report)
    if marked_again:
        await users.mark_user(marked, MOMENT)
    [parts] = [parts async for parts in reports.removals(marked)]
    for attempt in (
        deletions.renew(first),
        deletions.remove(first, parts),
        deletions.finish(first),
    ):
        with pytest.raises(LeaseLost):
            await attempt
    await deletions.release(first)
    assert await reports.get_report(report.id, marked) == report
    assert (await users.get_user(marked)).name == "Eve"
    assert (marked in await deletions.list_marked()) == marked_again


async def test_without_a_profile_nothing_is_removed(
    deletions: UserDeletionRepository, reports: ReportRepository, marked: str
) -> None:
    """Reports may be written as soon as the profile is gone, before there is another one."""
    first = await claimed(deletions, marked)
    await deletions.finish(first)
    report = Report(uuid4().hex, marked, "t", MOMENT, MOMENT)
    await reports.create_report(report)
    with pytest.raises(LeaseLost):
        await removed(deletions, first, reports.removals(marked))
    assert await reports.get_report(report.id, marked) == report


async def test_who_is_not_marked_is_not_claimed(
    deletions: UserDeletionRepository,
    users: UserRepository,
    dynamo: Dynamo,
    settings: Settings,
    marked: str,
) -> None:
    """A pending entry that is left of a mark goes; the user stays."""
    await deletions.finish(await claimed(deletions, marked))
    await users.create_user(User(marked, MOMENT, MOMENT))
    note = {**key(caller="k9/user-deletions", key=marked), "marked_at": {"S": MOMENT}}
    await transactions.transact(
        dynamo, transactions.put(settings.table(tables.IDEMPOTENCY.name), note)
    )
    assert marked in await deletions.list_marked()
    assert await deletions.claim(marked) is None
    assert marked not in await deletions.list_marked()
    assert (await users.get_user(marked)).deleting_at is None
    assert await deletions.claim(uuid4().hex) is None


async def test_a_mark_of_an_older_version_is_taken_over(
    deletions: UserDeletionRepository,
    users: UserRepository,
    dynamo: Dynamo,
    settings: Settings,
    marked: str,
) -> None:
    """It is found, and from the claim on noted where no worker of that version looks."""
    table = settings.table(tables.IDEMPOTENCY.name)
    old = {**key(caller="k9/deletions", key=marked), "marked_at": {"S": MOMENT}}
    await transactions.transact(
        dynamo,
        transactions.delete(table, key(caller="k9/user-deletions", key=marked)),
        transactions.put(table, old),
    )
    assert (await deletions.list_marked()).count(marked) == 1
    deletion = await claimed(deletions, marked)
    reply = await dynamo.call(
        "get_item", TableName=table, Key=key(caller="k9/deletions", key=marked)
    )
    assert "Item" not in reply
    assert marked in await deletions.list_marked()
    await deletions.finish(deletion)
    assert marked not in await deletions.list_marked()
    with pytest.raises(NotFound):
        await users.get_user(marked)


async def test_marks_are_listed_to_their_end(
    deletions: UserDeletionRepository, users: UserRepository
) -> None:
    """Many at once."""
    ids = [f"{uuid4().hex}-{'x' * 500}" for _ in range(60)]
    for user_id in ids:
        await users.create_user(User(user_id, MOMENT, MOMENT))
        await users.mark_user(user_id, MOMENT)
    assert set(ids) <= set(await deletions.list_marked())


async def test_all_reports_of_a_user_are_removed(
    deletions: UserDeletionRepository, reports: ReportRepository, users: UserRepository
) -> None:
    """More than one transaction of them, however large, and nobody else's."""
    owner, other = uuid4().hex, uuid4().hex
    await users.create_user(User(owner, MOMENT, MOMENT, preferences=f'{{"p": "{"x" * 65_000}"}}'))
    large = tuple(f"{number:03d}{'p' * 500}" for number in range(300))
    made = [
        Report(uuid4().hex, owner, "t", f"2025-01-01T00:00:{n:02}.000000Z", MOMENT, favorites=large)
        for n in range(3 * REMOVALS_MAX + 1)
    ]
    theirs = Report(uuid4().hex, other, "t", MOMENT, MOMENT)
    await asyncio.gather(*map(reports.create_report, [*made, theirs]))
    await users.mark_user(owner, MOMENT)
    deletion = await claimed(deletions, owner)
    assert await removed(deletions, deletion, reports.removals(owner)) == len(made)
    assert await removed(deletions, deletion, reports.removals(owner)) == 0
    assert await reports.list_reports(owner, limit=100) == ([], None)
    assert await reports.list_reports(other, limit=100) == ([theirs], None)


async def test_a_row_that_is_another_users_by_now_stays(
    deletions: UserDeletionRepository,
    reports: ReportRepository,
    dynamo: Dynamo,
    settings: Settings,
    marked: str,
) -> None:
    """The index may still show it as the one that was there before."""
    report = Report(uuid4().hex, uuid4().hex, "t", MOMENT, MOMENT)
    await reports.create_report(report)

    class Late(Dynamo):
        async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
            reply = await dynamo.call(operation, **parameters)
            if operation == "query":
                reply["Items"] = [{"id": AttributeValue(S=report.id)}]
            return reply

    users = UserRepository(dynamo, settings)
    lagging = ReportRepository(Late(None, deadline_s=1), users, settings)
    deletion = await claimed(deletions, marked)
    with pytest.raises(Unavailable):
        await removed(deletions, deletion, lagging.removals(marked))
    assert await reports.get_report(report.id, report.user_id) == report


async def test_a_caller_is_forgotten_but_for_lasting_answers(
    deletions: UserDeletionRepository, records: IdempotencyRepository, dynamo: Dynamo, marked: str
) -> None:
    """Nobody else's records go; a claim in flight then completes nothing."""
    caller, other = f"user/{marked}", f"user/{uuid4().hex}"
    claims = [await records.begin(caller, f"k{number:02d}", "f") for number in range(30)]
    for claim in claims[2:]:
        assert isinstance(claim, Claim)
        await records.complete(claim, RESULT)
    lasting, theirs = claims[1], await records.begin(other, "k", "f")
    assert isinstance(lasting, Claim)
    await transactions.transact(dynamo, *completion(lasting, RESULT, lasting=True))
    assert isinstance(theirs, Claim)
    await records.complete(theirs, RESULT)
    deletion = await claimed(deletions, marked)
    assert await removed(deletions, deletion, records.removals(caller)) == 29
    assert await removed(deletions, deletion, records.removals(caller)) == 0
    assert isinstance(claims[0], Claim)
    with pytest.raises(InFlight):
        await records.complete(claims[0], RESULT)
    assert isinstance(await records.begin(caller, "k05", "f"), Claim)
    assert await records.begin(caller, "k01", "f") == STORED
    assert await records.begin(other, "k", "f") == STORED
