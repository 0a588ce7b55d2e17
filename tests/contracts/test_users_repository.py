"""The users table's promises, on every emulator."""

import asyncio
from uuid import uuid4

import msgspec
import pytest

from core.dynamo.client import Dynamo
from core.errors import AlreadyExists, BeingDeleted, NotFound, Stale
from core.models import Report, User
from core.repositories.reports import ReportRepository
from core.repositories.users import UserRepository
from core.settings import Settings

MOMENT = "2025-01-01T00:00:00.000000Z"


@pytest.fixture
def user() -> User:
    """A user of this test's own, not stored yet."""
    return User(
        uuid4().hex,
        MOMENT,
        MOMENT,
        name="Ada 🐍",
        email="ada@example.com",
        avatar_url="https://example.com/a.png",
        preferences='{"": [1e-300, 1.0, 99999999999999999999999999999999999999999, ""], "a.b": {}}',
    )


def later(user: User, **changes: str | None) -> User:
    """The next version."""
    return msgspec.structs.replace(user, version=user.version + 1, **changes)


async def test_a_user_comes_back_as_it_was(users: UserRepository, user: User) -> None:
    """Every field, those that are not set too; the preferences to the character."""
    await users.create_user(user)
    assert await users.get_user(user.user_id) == user
    bare = User(f"{user.user_id}-bare", MOMENT, MOMENT)
    await users.create_user(bare)
    assert await users.get_user(bare.user_id) == bare
    for changed in (later(user, name=None), later(later(user), name="Eve", email=None)):
        await users.update_user(changed, changed.version - 1)
        assert await users.get_user(user.user_id) == changed


async def test_a_user_is_created_once(users: UserRepository, user: User) -> None:
    """Of several at once one is, and the others change nothing."""
    made = [msgspec.structs.replace(user, name=str(number)) for number in range(5)]
    done = await asyncio.gather(*map(users.create_user, made), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["AlreadyExists"] * 4 + ["NoneType"]
    assert await users.get_user(user.user_id) == made[done.index(None)]
    with pytest.raises(AlreadyExists):
        await users.create_user(user)


async def test_of_changes_of_one_version_one_holds(users: UserRepository, user: User) -> None:
    """The others are told, so that no change is lost."""
    await users.create_user(user)
    made = [later(user, name=str(number)) for number in range(5)]
    done = await asyncio.gather(
        *(users.update_user(change, user.version) for change in made), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in done) == ["NoneType"] + ["Stale"] * 4
    assert await users.get_user(user.user_id) == made[done.index(None)]
    with pytest.raises(Stale):
        await users.update_user(later(user), user.version)


async def test_who_is_not_there_is_not_changed(users: UserRepository, user: User) -> None:
    """Neither by a change nor by a mark."""
    for attempt in (
        users.get_user(user.user_id),
        users.update_user(later(user), user.version),
        users.mark_user(user.user_id, MOMENT),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_a_marked_user_takes_no_writes(users: UserRepository, user: User) -> None:
    """Neither a change nor another mark, until it is removed."""
    await users.create_user(user)
    await users.mark_user(user.user_id, MOMENT)
    marked = await users.get_user(user.user_id)
    assert (marked.deleting_at, marked.version) == (MOMENT, 1)
    for attempt in (
        users.create_user(user),
        users.update_user(later(user), user.version),
        users.update_user(later(marked), marked.version),
        users.mark_user(user.user_id, MOMENT),
    ):
        with pytest.raises(BeingDeleted):
            await attempt


async def test_a_mark_and_a_report_at_once(
    users: UserRepository, dynamo: Dynamo, settings: Settings, user: User
) -> None:
    """Each report is either written before the mark or not at all."""
    reports = ReportRepository(dynamo, users, settings)
    await users.create_user(user)
    made = [Report(uuid4().hex, user.user_id, "t", MOMENT, MOMENT) for _ in range(12)]
    done = await asyncio.gather(
        *map(reports.create_report, made[:6]),
        users.mark_user(user.user_id, MOMENT),
        *map(reports.create_report, made[6:]),
        return_exceptions=True,
    )
    assert {type(one) for one in done} <= {type(None), BeingDeleted}
    assert done[6] is None
    stored = {report.id for report, one in zip(made, done[:6] + done[7:], strict=True) if not one}
    listed, _ = await reports.list_reports(user.user_id, limit=100)
    assert {report.id for report in listed} == stored
    with pytest.raises(BeingDeleted):
        await reports.create_report(msgspec.structs.replace(made[0], id=uuid4().hex))
