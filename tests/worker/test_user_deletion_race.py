"""Two workers at one deletion: whichever is slow, nothing that was written since is destroyed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from core.dynamo.client import Dynamo
from core.errors import NotFound
from core.models import User
from core.repositories.idempotency import Claim, StoredResult
from core.resources import Resources, open_resources
from core.results import DeletedReport
from core.settings import Settings
from tests.worker.test_user_deletion import MOMENT, add_report
from worker import user_deletion
from worker.background import Background
from worker.user_deletion import delete_user

LEASE_S = 0.3
RESULT = DeletedReport()
STORED = StoredResult(RESULT, "json")
REPORTS = 12


class Paused(Dynamo):
    """The client of a worker that stands still before a chosen call, until it may go on."""

    def __init__(self, dynamo: Dynamo, pause_at: int) -> None:
        super().__init__(None, deadline_s=1)
        self._dynamo = dynamo
        self._pause_at = pause_at
        self._calls = 0
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Passes the call on, the chosen one only once the worker may go on."""
        self._calls += 1
        if self._calls == self._pause_at:
            self.paused.set()
            await self.resumed.wait()
        return await self._dynamo.call(operation, **parameters)


@pytest.fixture
def settings(stack_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The stack's settings, with an index that settles soon and leases that end soon."""
    monkeypatch.setattr(user_deletion, "_POLL_S", 0.05)
    return msgspec.structs.replace(
        stack_settings,
        records=msgspec.structs.replace(stack_settings.records, deletion_settle_s=0.1),
        building=msgspec.structs.replace(stack_settings.building, lease_s=LEASE_S),
    )


@pytest.fixture
async def resources(settings: Settings) -> AsyncIterator[Resources]:
    """What the API and the worker that is not slow work with."""
    async with open_resources(settings) as opened:
        yield opened


@asynccontextmanager
async def slow_worker(
    settings: Settings, pause_at: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Resources, Paused]]:
    """The resources of a worker that stands still before one of its calls."""
    async with open_resources(settings) as opened:
        paused = Paused(opened.dynamo, pause_at)
        for repository in (opened.user_deletions, opened.reports, opened.idempotency):
            monkeypatch.setattr(repository, "_dynamo", paused)
        yield opened, paused


async def a_life(resources: Resources, user_id: str) -> list[str]:
    """Makes a profile, reports and a kept answer for this user; the ids of the reports."""
    await resources.users.create_user(User(user_id, MOMENT, MOMENT, name="Ada"))
    made = await asyncio.gather(*(add_report(resources, user_id) for _ in range(REPORTS)))
    claim = await resources.idempotency.begin(f"user/{user_id}", "key", "f")
    assert isinstance(claim, Claim)
    await resources.idempotency.complete(claim, RESULT)
    return [report.id for report in made]


async def assert_alive(resources: Resources, user_id: str, report_ids: list[str]) -> None:
    """Checks that profile, reports and kept answer of this user are there."""
    assert (await resources.users.get_user(user_id)).deleting_at is None
    for report_id in report_ids:
        await resources.reports.get_report(report_id, user_id)
    assert await resources.idempotency.begin(f"user/{user_id}", "key", "f") == StoredResult(
        RESULT, "json"
    )


async def deleted(resources: Resources, user_id: str) -> None:
    """Has a worker try until the profile is gone: it may first have to wait for a lease."""
    async with asyncio.timeout(30):
        while True:
            await delete_user(resources, user_id)
            try:
                await resources.users.get_user(user_id)
            except NotFound:
                return
            await asyncio.sleep(LEASE_S / 4)


async def test_a_slow_worker_destroys_nothing_of_the_next_life(
    resources: Resources, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call it stands still before while another worker takes over and finishes."""
    for pause_at in range(1, 100):
        user_id = uuid4().hex
        await a_life(resources, user_id)
        await resources.user_service.request_deletion(user_id)
        async with slow_worker(settings, pause_at, monkeypatch) as (slow, paused):
            slowly = asyncio.create_task(delete_user(slow, user_id))
            reaching = asyncio.create_task(paused.paused.wait())
            await asyncio.wait({slowly, reaching}, return_when=asyncio.FIRST_COMPLETED)
            reaching.cancel()
            if slowly.done():
                await slowly
                assert pause_at > 5
                return  # it has no further call to stand still before
            await deleted(resources, user_id)
            report_ids = await a_life(resources, user_id)
            paused.resumed.set()
            await slowly
        await assert_alive(resources, user_id, report_ids)
    raise AssertionError("the deletion has no end")


async def test_a_worker_that_stops_gives_a_deletion_back(
    resources: Resources, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one goes on at once, however long the lease would have been."""
    building = msgspec.structs.replace(settings.building, lease_s=600.0)
    patient = msgspec.structs.replace(settings, building=building)
    user_id = uuid4().hex
    await a_life(resources, user_id)
    await resources.user_service.request_deletion(user_id)
    async with slow_worker(patient, 4, monkeypatch) as (slow, paused):
        background = Background()
        background.start("delete", lambda: delete_user(slow, user_id))
        async with asyncio.timeout(30):
            await paused.paused.wait()
        assert await resources.user_deletions.claim(user_id) is None
        await background.close()
    await delete_user(resources, user_id)
    with pytest.raises(NotFound):
        await resources.users.get_user(user_id)
