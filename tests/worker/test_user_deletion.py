"""Deleting a user: all that is theirs goes, whatever dies on the way, and nothing of others'."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.errors import BeingDeleted, NotFound, Unavailable
from core.models import Report, User, now, timestamp
from core.repositories.idempotency import Claim
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.worker.work import lose_redis, reconciled, work
from worker import user_deletion
from worker.user_deletion import delete_user

MOMENT = "2025-01-01T00:00:00.000000Z"
SETTLE_S = 0.2
LEASE_S = 0.5


@pytest.fixture
def settings(stack_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The stack's settings, with an index that settles soon and leases that end soon."""
    monkeypatch.setattr(user_deletion, "_POLL_S", 0.05)
    return msgspec.structs.replace(
        stack_settings,
        records=msgspec.structs.replace(stack_settings.records, deletion_settle_s=SETTLE_S),
        building=msgspec.structs.replace(stack_settings.building, lease_s=LEASE_S),
    )


@pytest.fixture
async def resources(settings: Settings) -> AsyncIterator[Resources]:
    """Opened resources."""
    async with open_resources(settings) as opened:
        yield opened


@pytest.fixture
async def leaver(resources: Resources) -> str:
    """A user with 40 reports and a kept answer."""
    return await settled_user(resources)


async def settled_user(resources: Resources) -> str:
    """Makes a user with 40 reports and a kept answer."""
    user_id = uuid4().hex
    await resources.users.create_user(User(user_id, MOMENT, MOMENT, name="Ada"))
    await asyncio.gather(*(add_report(resources, user_id) for _ in range(40)))
    claim = await resources.idempotency.begin(f"user/{user_id}", "key", "f")
    assert isinstance(claim, Claim)
    await resources.idempotency.complete(claim, User(user_id, MOMENT, MOMENT))
    return user_id


async def add_report(resources: Resources, user_id: str) -> Report:
    """Stores a report of this user."""
    moment = timestamp(now())
    report = Report(uuid4().hex, user_id, "t", moment, moment)
    await resources.reports.create_report(report)
    return report


async def mark(resources: Resources, user_id: str) -> None:
    """Marks a user for deletion, and tells the workers."""
    await resources.user_service.request_deletion(user_id)
    await resources.queue.enqueue_deletion(user_id)


async def rows_of(resources: Resources, user_id: str) -> list[str]:
    """The names of the tables that still have something of this user, by a scan of each."""
    found = []
    for table in (tables.USERS, tables.REPORTS, tables.IDEMPOTENCY):
        start: dict[str, Any] = {}
        while True:
            name = resources.settings.table(table.name)
            page = await resources.dynamo.call("scan", TableName=name, ConsistentRead=True, **start)
            held = [user_id in str(value) for item in page["Items"] for value in item.values()]
            found += [table.name] * any(held)
            if "LastEvaluatedKey" not in page:
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
    return found


class Obstacles(Dynamo):
    """The client, with an index that is late and a crash at a chosen call."""

    def __init__(self, dynamo: Dynamo) -> None:
        super().__init__(None, deadline_s=1)
        self._dynamo = dynamo
        self.hidden: set[str] = set()
        """Reports that the index does not show yet."""
        self.crash_at: int | None = None
        """At which changing call the process dies; it and those after it are not made."""
        self.writes = 0

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Passes the call on, or not."""
        if operation not in {"query", "get_item"}:
            self.writes += 1
            if self.crash_at is not None and self.writes >= self.crash_at:
                raise Unavailable("the process died here")
        reply = await self._dynamo.call(operation, **parameters)
        if parameters.get("IndexName") == tables.USER_REPORTS_INDEX:
            items = [item for item in reply["Items"] if item["id"].S not in self.hidden]
            reply = {**reply, "Items": items}
            if self.hidden:
                self.hidden.pop()  # the next look shows one more
        return reply


def obstructed(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> Obstacles:
    """Puts obstacles before the repositories of these resources."""
    obstacles = Obstacles(resources.dynamo)
    for repository in (resources.user_deletions, resources.reports, resources.idempotency):
        monkeypatch.setattr(repository, "_dynamo", obstacles)
    return obstacles


async def test_a_worker_removes_all_of_a_user(
    resources: Resources, settings: Settings, leaver: str
) -> None:
    """Profile, reports and kept answers; of others nothing."""
    stays = await settled_user(resources)
    assert await rows_of(resources, leaver) == ["users", "reports", "idempotency"]
    await mark(resources, leaver)
    await work(settings)
    assert await rows_of(resources, leaver) == []
    assert await resources.user_deletions.list_marked() == []
    reports, _ = await resources.reports.list_reports(stays, limit=100)
    assert len(reports) == 40
    assert await rows_of(resources, stays) == ["users", "reports", "idempotency"]


async def test_reports_that_the_index_shows_late_go_too(
    resources: Resources, leaver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those written just before the mark, which the first looks do not find."""
    late = [await add_report(resources, leaver) for _ in range(5)]
    obstacles = obstructed(resources, monkeypatch)
    obstacles.hidden = {report.id for report in late}
    await resources.user_service.request_deletion(leaver)
    # The time that an index may take is over when it has shown all, however busy the machine is.
    monkeypatch.setattr(
        user_deletion, "monotonic", lambda: 0.0 if obstacles.hidden else 2 * SETTLE_S
    )
    await delete_user(resources, leaver)
    assert await rows_of(resources, leaver) == []


async def test_a_deletion_goes_on_where_it_broke_off(
    resources: Resources, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may die before any of its writes; the reconciler finds the next one."""
    for crash_at in range(1, 100):
        leaver = await settled_user(resources)
        with monkeypatch.context() as patched:
            obstacles = obstructed(resources, patched)
            await resources.user_service.request_deletion(leaver)
            obstacles.crash_at = crash_at
            await delete_user(resources, leaver)
        if not await rows_of(resources, leaver):
            assert crash_at > 7  # more than its transactions
            return
        with pytest.raises(BeingDeleted):
            await add_report(resources, leaver)
        assert leaver in await resources.user_deletions.list_marked()
        async with asyncio.timeout(30):
            while await rows_of(resources, leaver):  # until the lease of the dead one has ended
                assert await reconciled(resources) >= 1
                await work(settings)
    raise AssertionError("the deletion has no end")


async def test_a_lost_message_is_made_good(
    resources: Resources, settings: Settings, leaver: str
) -> None:
    """The mark stands in a table, where the reconciler finds it."""
    await mark(resources, leaver)
    await lose_redis(resources)
    await work(settings)
    assert await rows_of(resources, leaver)
    assert await reconciled(resources) >= 1
    await work(settings)
    assert await rows_of(resources, leaver) == []


async def test_deleting_twice_is_deleting_once(
    resources: Resources, settings: Settings, leaver: str
) -> None:
    """At the same time or one after the other."""
    await mark(resources, leaver)
    await asyncio.gather(*(delete_user(resources, leaver) for _ in range(3)))
    await work(settings)
    await delete_user(resources, leaver)
    assert await rows_of(resources, leaver) == []


async def test_who_is_not_marked_is_left_alone(resources: Resources, leaver: str) -> None:
    """A job by itself deletes nobody; nor one for a user who was never there."""
    await delete_user(resources, leaver)
    await delete_user(resources, uuid4().hex)
    assert (await resources.users.get_user(leaver)).deleting_at is None
    reports, _ = await resources.reports.list_reports(leaver, limit=100)
    assert len(reports) == 40


async def test_a_user_may_come_back(resources: Resources, settings: Settings, leaver: str) -> None:
    """With nothing of before; a late job for the one before does not touch the new one."""
    await mark(resources, leaver)
    await work(settings)
    with pytest.raises(NotFound):
        await resources.users.get_user(leaver)
    await resources.users.create_user(User(leaver, MOMENT, MOMENT))
    report = await add_report(resources, leaver)
    await resources.queue.enqueue_deletion(leaver)
    await work(settings)
    assert (await resources.users.get_user(leaver)).name is None
    assert await resources.reports.list_reports(leaver, limit=100) == ([report], None)
    await mark(resources, leaver)
    await work(settings)
    assert await rows_of(resources, leaver) == []
