"""The reports table's promises, on every emulator: each is its user's alone."""

import asyncio
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from core.dynamo.client import Dynamo
from core.errors import AlreadyExists, BeingDeleted, NotFound, Stale
from core.models import Report, User
from core.repositories.reports import ReportPosition, ReportRepository
from core.repositories.users import UserRepository
from core.settings import Settings

MOMENT = "2025-01-01T00:00:00.000000Z"


@pytest.fixture
def reports(dynamo: Dynamo, users: UserRepository, settings: Settings) -> ReportRepository:
    """The repository under test."""
    return ReportRepository(dynamo, users, settings)


@pytest.fixture
def owner() -> str:
    """A user of this test's own."""
    return uuid4().hex


def report_of(owner: str, number: int = 0, **fields: Any) -> Report:
    """A report, not stored yet; a larger number is newer."""
    moment = f"2025-01-01T00:00:00.{number:06d}Z"
    return Report(uuid4().hex, owner, f"title {number}", moment, moment, **fields)


def later(report: Report, **changes: Any) -> Report:
    """The next version."""
    return msgspec.structs.replace(report, version=report.version + 1, **changes)


async def listed(reports: ReportRepository, owner: str, limit: int = 100) -> list[Report]:
    """All of a user's reports, page by page."""
    found: list[Report] = []
    position: ReportPosition | None = None
    while True:
        page, position = await reports.list_reports(owner, limit=limit, position=position)
        assert len(page) <= limit
        found += page
        if position is None:
            return found


async def test_a_report_comes_back_as_it_was(reports: ReportRepository, owner: str) -> None:
    """Every field, by its id and in the list."""
    full = report_of(
        owner,
        1,
        author="Ada 🐍",
        date="2025-09-30",
        reference="r" * 2000,
        favorites=("b", "a", "é" * 256),
    )
    bare = report_of(owner)
    for report in (full, bare):
        await reports.create_report(report)
        assert await reports.get_report(report.id, owner) == report
    assert await listed(reports, owner) == [full, bare]
    with pytest.raises(AlreadyExists):
        await reports.create_report(full)


async def test_the_largest_report_fits(reports: ReportRepository, owner: str) -> None:
    """A thousand favorites of 160 bytes each."""
    report = report_of(owner, favorites=tuple(f"{n:04d}" + "é" * 78 for n in range(1000)))
    await reports.create_report(report)
    assert await reports.get_report(report.id, owner) == report


async def test_someone_elses_is_as_good_as_none(reports: ReportRepository, owner: str) -> None:
    """Each call fails in the same way and words, whatever version is named, and changes nothing."""
    report = report_of(owner)
    await reports.create_report(report)
    thief = uuid4().hex
    words = set()
    for report_id in (report.id, uuid4().hex):
        stolen = msgspec.structs.replace(report, id=report_id, user_id=thief, title="stolen")
        for attempt in (
            reports.get_report(report_id, thief),
            reports.update_report(later(stolen), 1),
            reports.update_report(later(stolen), 7),
            reports.delete_report(report_id, thief),
            reports.delete_report(report_id, thief, 1),
            reports.delete_report(report_id, thief, 7),
        ):
            with pytest.raises(NotFound) as caught:
                await attempt
            words.add(str(caught.value))
    assert len(words) == 1
    assert await listed(reports, thief) == []
    assert [parts async for parts in reports.removals(thief)] == []
    assert await reports.get_report(report.id, owner) == report


async def test_of_changes_of_one_version_one_holds(reports: ReportRepository, owner: str) -> None:
    """The others are stale, deletions too."""
    report = report_of(owner)
    await reports.create_report(report)
    made = [later(report, title=str(number)) for number in range(4)]
    done = await asyncio.gather(
        *(reports.update_report(change, 1) for change in made), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in done) == ["NoneType"] + ["Stale"] * 3
    assert await reports.get_report(report.id, owner) == made[done.index(None)]
    with pytest.raises(Stale):
        await reports.delete_report(report.id, owner, 1)
    await reports.delete_report(report.id, owner, 2)


async def test_a_report_is_deleted_once(reports: ReportRepository, owner: str) -> None:
    """Of several at once one does it, and then there is nothing to change."""
    report = report_of(owner)
    await reports.create_report(report)
    done = await asyncio.gather(
        *(reports.delete_report(report.id, owner) for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in done) == ["NoneType"] + ["NotFound"] * 3
    with pytest.raises(NotFound):
        await reports.update_report(later(report), 1)
    assert await listed(reports, owner) == []


async def test_pages_go_from_the_newest_to_the_oldest(
    reports: ReportRepository, owner: str
) -> None:
    """However long they are, and whatever is deleted or added between two of them."""
    made = [report_of(owner, number) for number in range(12)]
    await asyncio.gather(*map(reports.create_report, made))
    expected = made[::-1]
    for limit in (1, 5, 12, 100):
        assert await listed(reports, owner, limit) == expected
    first, position = await reports.list_reports(owner, limit=4)
    assert first == expected[:4]
    # the report that the next page begins after is deleted, and a newer one added
    await reports.delete_report(first[-1].id, owner)
    await reports.create_report(report_of(owner, 50))
    second, position = await reports.list_reports(owner, limit=4, position=position)
    assert second == expected[4:8]


async def test_a_position_of_someone_else_shows_only_ones_own(
    reports: ReportRepository, owner: str
) -> None:
    """The partition is the caller's, whatever else a cursor holds."""
    other = uuid4().hex
    mine, theirs = report_of(owner, 1), report_of(other, 5)
    for report in (mine, theirs):
        await reports.create_report(report)
    page, _ = await reports.list_reports(
        owner, limit=10, position=ReportPosition(theirs.id, theirs.created_at)
    )
    assert page == [mine]


async def test_nothing_is_written_while_the_user_is_being_deleted(
    reports: ReportRepository, users: UserRepository, owner: str
) -> None:
    """By its owner; to anyone else it stays as good as none."""
    report, other = report_of(owner), report_of(uuid4().hex)
    await users.create_user(User(owner, MOMENT, MOMENT))
    for one in (report, other):
        await reports.create_report(one)
    await users.mark_user(owner, MOMENT)
    for attempt in (
        reports.create_report(report_of(owner)),
        reports.update_report(later(report), 1),
        reports.delete_report(report.id, owner),
    ):
        with pytest.raises(BeingDeleted):
            await attempt
    with pytest.raises(NotFound):
        await reports.delete_report(other.id, owner)
    with pytest.raises(Stale):
        await reports.update_report(later(report), 5)
    await reports.delete_report(other.id, other.user_id)
