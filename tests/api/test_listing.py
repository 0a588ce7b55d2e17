"""Listing many reports by pages, while others come and go."""

import asyncio
import random
from typing import Any

from core.dynamo import tables
from core.models import Report, now, timestamp
from core.repositories.reports import REPORT_CODEC
from core.resources import Resources
from tests.api.conftest import Service
from tests.api.people import Person, person

REPORTS = 1000
MOMENT = timestamp(now())


async def stored(resources: Resources, owner: str) -> list[str]:
    """Stores 1,000 reports, many of the same moment; their ids."""
    made = [
        Report(f"{number:032x}", owner, f"{number}", f"2025-01-01T00:{number % 60:02d}:00Z", MOMENT)
        for number in range(REPORTS)
    ]
    table = resources.settings.table(tables.REPORTS.name)
    for start in range(0, REPORTS, 25):
        rows = [
            {"PutRequest": {"Item": REPORT_CODEC.encode(report)}}
            for report in made[start : start + 25]
        ]
        reply = await resources.dynamo.call("batch_write_item", RequestItems={table: rows})
        assert not reply.get("UnprocessedItems")
    return [report.id for report in made]


async def walk(reader: Person, limit: int, pages: list[list[dict[str, Any]]]) -> None:
    """Reads all pages, each into `pages` as it comes."""
    cursor: str | None = None
    while True:
        parameters: dict[str, Any] = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        reply = await reader.client.get("/reports", params=parameters)
        assert reply.status_code == 200, reply.text
        pages.append(reply.json()["items"])
        cursor = reply.json()["next_cursor"]
        if cursor is None:
            return


async def test_no_report_is_missing_or_seen_twice(service: Service) -> None:
    """Whoever lists 1,000 of them sees each that stays once, while others are added and deleted."""
    generator = random.Random(5)
    async with person(service) as owner:
        ids = await stored(service.resources, owner.sub)
        doomed = set(generator.sample(ids, 300))
        pages: list[list[dict[str, Any]]] = []
        walking = asyncio.create_task(walk(owner, 37, pages))
        seen_pages = 0
        left = sorted(doomed)
        generator.shuffle(left)
        added: list[str] = []
        while not walking.done():
            added.append((await owner.report())["id"])
            # the last of each page that came, where the next page begins, and some anywhere
            ends = [page[-1]["id"] for page in pages[seen_pages:] if page]
            seen_pages = len(pages)
            going = [one for one in ends if one not in left and one in ids and one not in doomed]
            doomed.update(going)
            going += [left.pop() for _ in range(3) if left]
            replies = await asyncio.gather(
                *(owner.client.delete(f"/reports/{one}") for one in going)
            )
            assert {reply.status_code for reply in replies} <= {204}
        await walking
        seen = [item["id"] for page in pages for item in page]
        assert len(seen) == len(set(seen))
        assert set(ids) - doomed <= set(seen)
        assert set(seen) <= set(ids) | set(added)
        assert all(len(page) <= 37 for page in pages)
        times = [item["created_at"] for page in pages for item in page]
        assert times == sorted(times, reverse=True)
        # and once nothing changes any more, the list is exactly what is there
        pages.clear()
        await walk(owner, 100, pages)
        gone = doomed - set(left)
        expected = sorted([*added, *(set(ids) - gone)])
        assert sorted(item["id"] for page in pages for item in page) == expected
