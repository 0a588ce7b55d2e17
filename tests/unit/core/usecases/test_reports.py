"""What a report may hold, and how changes of one go with others that come between."""

from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from core.dynamo.client import Dynamo
from core.errors import Invalid, NotFound, Stale, Unavailable
from core.models import Report
from core.repositories.reports import ReportRepository, unknown_report
from core.repositories.transactions import Part
from core.repositories.users import UserRepository
from core.settings import Settings
from core.usecases.reports import ReportService

SETTINGS = Settings()


class Shelf(ReportRepository):
    """Reports in memory; `between` is how often another change comes before a write."""

    def __init__(self) -> None:
        super().__init__(cast("Dynamo", None), cast("UserRepository", None), SETTINGS)
        self.reports: dict[str, Report] = {}
        self.between = 0

    async def get_report(self, report_id: str, user_id: str) -> Report:
        """The user's report."""
        there = self.reports.get(report_id)
        if there is None or there.user_id != user_id:
            raise unknown_report()
        return there

    async def create_report(self, report: Report, also: Sequence[Part] = ()) -> None:
        """Puts it."""
        self.reports[report.id] = report

    async def update_report(
        self, report: Report, expected_version: int, also: Sequence[Part] = ()
    ) -> None:
        """Puts it over the version that is expected."""
        there = await self.get_report(report.id, report.user_id)
        if self.between:
            self.between -= 1
            there = msgspec.structs.replace(there, author="other", version=there.version + 1)
            self.reports[report.id] = there
        if there.version != expected_version:
            raise Stale("it has changed")
        self.reports[report.id] = report


@pytest.fixture
def shelf() -> Shelf:
    """No reports."""
    return Shelf()


@pytest.fixture
def reports(shelf: Shelf) -> ReportService:
    """The use case over it."""
    return ReportService(shelf, SETTINGS)


FIELDS: list[tuple[str, Any, bool]] = [
    ("title", "x" * 500, True),
    ("title", "日" * 500, True),
    ("title", "x" * 501, False),
    ("title", "", False),
    ("title", " ", False),
    ("title", None, False),
    ("title", "a\tb", False),
    ("author", "Ada", True),
    ("author", "", False),
    ("author", None, True),
    ("date", "2024-02-29", True),
    ("date", "0001-01-01", True),
    ("date", "2023-02-29", False),
    ("date", "2025-13-01", False),
    ("date", "2025-9-30", False),
    ("date", "20250930", False),
    ("date", "2025-W40-1", False),
    ("date", "2025-09-30T00:00:00Z", False),
    ("date", "٢٠٢٥-٠٩-٣٠", False),
    ("date", "", False),
    ("date", None, True),
    ("reference", "x" * 2000, True),
    ("reference", "x" * 2001, False),
    ("favorites", ["a", "b"], True),
    ("favorites", [], True),
    ("favorites", None, True),
    ("favorites", [f"p{number}" for number in range(1000)], True),
    ("favorites", ["ü" * 256], True),
]


@pytest.mark.parametrize(("field", "value", "good"), FIELDS)
async def test_a_field_holds_or_is_named(
    reports: ReportService, shelf: Shelf, field: str, value: Any, *, good: bool
) -> None:
    """In creating and in changing alike; what does not hold changes nothing."""
    there = await reports.create("u", {"title": "there"})
    if good:
        made = await reports.create("u", {"title": "new", field: value})
        changed = await reports.change(there.id, "u", {field: value})
        expected = tuple(value or ()) if field == "favorites" else value
        assert getattr(made, field) == getattr(changed, field) == expected
        return
    for attempt in (
        reports.create("u", {"title": "new", field: value}),
        reports.change(there.id, "u", {field: value}),
    ):
        with pytest.raises(Invalid) as caught:
            await attempt
        assert [error.field for error in caught.value.errors] == [field]
    assert shelf.reports == {there.id: there}


async def test_a_title_is_required_once(reports: ReportService) -> None:
    """To create a report, and not to change one."""
    with pytest.raises(Invalid) as caught:
        await reports.create("u", {"author": "Ada"})
    assert [error.field for error in caught.value.errors] == ["title"]
    made = await reports.create("u", {"title": "new"})
    assert (await reports.change(made.id, "u", {"author": "Ada"})).title == "new"


async def test_favorites_keep_their_order_and_lose_their_doubles(reports: ReportService) -> None:
    """Each id stays where it came first; doubles do not count."""
    ids = [f"p{number % 1000}" for number in range(3000)]
    made = await reports.create("u", {"title": "t", "favorites": ["b", "a", "b", "c", "a"]})
    assert made.favorites == ("b", "a", "c")
    assert len((await reports.change(made.id, "u", {"favorites": ids})).favorites) == 1000


async def test_bad_favorites_are_named_by_their_place(reports: ReportService) -> None:
    """Where each comes first."""
    ids = ["a", "", "a", "..", "", "b\n", "x" * 513]
    with pytest.raises(Invalid) as caught:
        await reports.create("u", {"title": "t", "favorites": ids})
    assert [error.field for error in caught.value.errors] == [
        "favorites[1]",
        "favorites[3]",
        "favorites[5]",
        "favorites[6]",
    ]


@pytest.mark.parametrize(
    "ids",
    [[f"p{number}" for number in range(1001)], [f"{n:03d}" + "é" * 200 for n in range(1000)]],
    ids=["1,001 of them", "400 KB of them"],
)
async def test_too_many_favorites(reports: ReportService, ids: list[str]) -> None:
    """By number, and by bytes."""
    with pytest.raises(Invalid) as caught:
        await reports.create("u", {"title": "t", "favorites": ids})
    assert [error.field for error in caught.value.errors] == ["favorites"]


async def test_a_change_without_a_version_is_made_again(
    reports: ReportService, shelf: Shelf
) -> None:
    """On what came between, which is kept."""
    made = await reports.create("u", {"title": "t"})
    shelf.between = 8
    changed = await reports.change(made.id, "u", {"title": "new"})
    assert (changed.title, changed.author, changed.version) == ("new", "other", 10)
    assert shelf.reports[made.id] == changed


async def test_a_change_without_a_version_is_never_stale(
    reports: ReportService, shelf: Shelf
) -> None:
    """Where others keep coming between, it is unavailable in the end."""
    made = await reports.create("u", {"title": "t"})
    shelf.between = 1000
    with pytest.raises(Unavailable):
        await reports.change(made.id, "u", {"title": "new"})


async def test_a_change_of_a_version_is_of_that_alone(reports: ReportService, shelf: Shelf) -> None:
    """Stale at once where another came between; not found where it is someone else's."""
    made = await reports.create("u", {"title": "t"})
    shelf.between = 1
    with pytest.raises(Stale):
        await reports.change(made.id, "u", {"title": "new"}, frozenset({1}))
    with pytest.raises(Stale):
        await reports.change(made.id, "u", {"title": "new"}, frozenset())
    with pytest.raises(NotFound):
        await reports.change(made.id, "v", {"title": "new"}, frozenset({1}))
    assert (await reports.change(made.id, "u", {"title": "new"}, frozenset({2, 7}))).version == 3
