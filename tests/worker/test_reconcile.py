"""The reconciler: what it makes good, what does not stop it, and how a worker ends beside it."""

import asyncio
import contextlib
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from arq.constants import in_progress_key_prefix, retry_key_prefix
from prometheus_client import REGISTRY

from core.dynamo.expressions import Update, expressions, key
from core.errors import Corrupt, NotFound, Unavailable
from core.models import Build, User, now, timestamp
from core.names import job_id
from core.queue import BuildJob
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.worker.processes import until
from tests.worker.test_durability import has_ended, hurried, published_once, requested, worker
from tests.worker.work import lose_redis, reconciled, work
from worker import metrics
from worker.background import Background
from worker.building.runner import BuildRunner
from worker.context import open_context
from worker.importing.attempt import ImportRunner
from worker.reconcile import reconcile

MOMENT = "2025-01-01T00:00:00.000000Z"


async def rewrite(resources: Resources, table: str, row: dict[str, str], **attributes: str) -> None:
    """Gives a row other attributes, as another K9 would."""
    await resources.dynamo.call(
        "update_item",
        TableName=resources.settings.table(table),
        Key=key(**row),
        **expressions(update=Update(set=dict(attributes))),
    )


async def taken_by_the_dead(resources: Resources, build_id: str, fence: int) -> None:
    """Leaves in Redis what a worker leaves that is killed over a job."""
    taken = job_id(resources.settings.environment, build_id, fence)
    redis = resources.queue.redis
    await redis.zrem(resources.queue.name, taken)
    for prefix in (in_progress_key_prefix, retry_key_prefix):
        await redis.set(prefix + taken, b"1")


async def waits_in_queue(resources: Resources, build_id: str) -> bool:
    """Whether a build's first try waits in the queue."""
    jobs = await resources.queue.redis.zrange(resources.queue.name, 0, -1)
    return job_id(resources.settings.environment, build_id, 0).encode() in jobs


async def marked_user(resources: Resources) -> str:
    """The id of a user who is to be removed."""
    user_id = uuid4().hex
    await resources.users.create_user(User(user_id, MOMENT, MOMENT))
    await resources.users.mark_user(user_id, MOMENT)
    return user_id


async def test_a_reclaimed_build_has_a_job_of_its_own(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """The job that its killed worker took is still noted in Redis, for longer than anyone waits."""
    build_id = await requested(resources, model_version)
    await taken_by_the_dead(resources, build_id, 0)
    await resources.builds.claim(build_id, 0, lease_s=0.001)
    await asyncio.sleep(0.05)
    await reconciled(resources)
    await work(settings)
    assert (await published_once(resources, model_version, build_id)).fence == 2


async def test_who_is_never_heard_is_taken_without_a_hint(
    settings: Settings, model_version: str
) -> None:
    """A worker that died between a hint and its claim keeps the hint's id; Redis is well."""
    async with open_resources(hurried(settings, reconcile_s=0.2)) as resources:
        build_id = await requested(resources, model_version)
        await taken_by_the_dead(resources, build_id, 0)
        runner = BuildRunner(resources, Background())
        asked = time.monotonic()
        fence = 0
        async with asyncio.timeout(30):
            while not fence:
                await reconcile(resources, runner, ImportRunner(resources), Background())
                fence = (await resources.builds.get_build(build_id)).fence
                await asyncio.sleep(0.05)
        assert time.monotonic() - asked > 0.2
        await runner.drain()
        await published_once(resources, model_version, build_id)
        await runner.close()


async def test_a_build_that_waits_is_hinted_first(resources: Resources, model_version: str) -> None:
    """While there is Redis any worker may have it; the one that looks does not take it all."""
    build_id = await requested(resources, model_version)
    await lose_redis(resources)
    runner = BuildRunner(resources, Background())
    await reconcile(resources, runner, ImportRunner(resources), Background())
    assert await waits_in_queue(resources, build_id)
    assert (await resources.builds.get_build(build_id)).status == "queued"
    await runner.close()


async def test_claims_that_fail_are_not_made_in_a_hurry(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis, and with DynamoDB that takes no claim, each round waits for its time."""
    claims: asyncio.Queue[str] = asyncio.Queue()

    async def refused(_self: object, build_id: str, _fence: int) -> Build:
        claims.put_nowait(build_id)
        raise Unavailable("throttled")

    monkeypatch.setattr(type(resources.builds), "claim", refused)
    build_id = await requested(resources, model_version)
    async with worker(settings, reconcile_s=0.5):
        began = time.monotonic()
        claimed = 0
        async with asyncio.timeout(30):
            while claimed < 4:
                claimed += await claims.get() == build_id
    assert time.monotonic() - began >= 3 * 0.75 * 0.5


async def test_without_redis_a_slot_that_becomes_free_is_filled_at_once(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """The next round is an hour away: it comes when the build before it has ended."""
    ids = [await requested(resources, f"{model_version}-{number}") for number in range(3)]
    async with worker(settings, jobs_max=1, reconcile_s=3600.0):
        for build_id in ids:
            await until(resources, build_id, has_ended)


async def test_a_build_that_cannot_be_reckoned_with_stops_no_hint(
    resources: Resources, model_version: str
) -> None:
    """Its time makes no sense, or its status: those after it are told of all the same."""
    bad = [await requested(resources, f"{model_version}-bad-{number}") for number in range(2)]
    good = await requested(resources, model_version)
    await rewrite(resources, "builds", {"build_id": bad[0]}, requested_at="0 is no time")
    await rewrite(resources, "builds", {"build_id": bad[1]}, status="paused")
    await lose_redis(resources)
    await reconciled(resources)
    assert await waits_in_queue(resources, good)


async def test_one_bad_row_stops_nobody_else(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds that cannot be read or claimed are passed over; a user who cannot be read goes."""
    bad = [await requested(resources, f"{model_version}-bad-{number}") for number in range(2)]
    good = await requested(resources, model_version)
    await rewrite(resources, "builds", {"build_id": bad[0]}, status="paused")
    claim = type(resources.builds).claim

    async def corrupt(self: Any, build_id: str, fence: int) -> Build:
        if build_id == bad[1]:
            raise Corrupt("what came back cannot be read")
        return await claim(self, build_id, fence)

    monkeypatch.setattr(type(resources.builds), "claim", corrupt)
    users = [await marked_user(resources) for _ in range(2)]
    await rewrite(resources, "users", {"user_id": users[0]}, version="two")
    async with worker(settings, jobs_max=1):
        await until(resources, good, has_ended)
        async with asyncio.timeout(30):
            while {*users} & {*await resources.user_deletions.list_marked()}:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.05)
    for user_id in users:
        with pytest.raises(NotFound):
            await resources.users.get_user(user_id)


async def test_a_claim_under_way_when_the_worker_stops_is_given_back(
    resources: Resources, model_version: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have the build at once, and the one that stopped begins nothing."""
    claim = type(resources.builds).claim
    claimed = asyncio.Event()

    async def slow(self: Any, build_id: str, fence: int) -> Build:
        build = await claim(self, build_id, fence)
        claimed.set()
        await asyncio.sleep(0.5)  # the answer is on its way
        return build

    monkeypatch.setattr(type(resources.builds), "claim", slow)
    build_id = await requested(resources, model_version)
    patient = hurried(settings, lease_s=600.0)
    async with open_context(patient, reconcile=False) as context:
        taking = asyncio.create_task(context.runner.start(BuildJob(build_id, 0)))
        async with asyncio.timeout(30):
            await claimed.wait()
    free = context.runner.free_slots
    assert not await taking
    given = await resources.builds.get_build(build_id)
    assert (given.status, given.fence, given.unreturned, given.faults) == ("running", 1, 0, 0)
    assert given.lease_until_ms <= time.time() * 1000
    assert free == settings.building.jobs_max
    assert not await context.runner.start(BuildJob(build_id, 1))
    await context.runner.drain()
    assert await resources.builds.get_build(build_id) == given
    monkeypatch.undo()
    await lose_redis(resources)
    await reconciled(resources)
    await work(settings)
    assert (await published_once(resources, model_version, build_id)).fence == 2


async def test_a_claim_that_is_not_answered_holds_up_no_stop(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left after a while; should it have been made, its lease runs out."""
    monkeypatch.setattr("worker.slots._CLAIM_TIMEOUT_S", 0.2)
    asked = asyncio.Event()

    async def hanging(_self: object, _build_id: str, _fence: int) -> Build:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError("it has no end")

    monkeypatch.setattr(type(resources.builds), "claim", hanging)
    build_id = await requested(resources, model_version)
    runner = BuildRunner(resources, Background())
    taking = asyncio.create_task(runner.start(BuildJob(build_id, 0)))
    await asked.wait()
    async with asyncio.timeout(10):
        await runner.close()
        with contextlib.suppress(asyncio.CancelledError):
            await taking
    assert runner.free_slots == resources.settings.building.jobs_max


async def test_a_build_that_has_just_begun_is_given_back(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between its claim and its first step it is given back like any other."""
    build_id = await requested(resources, model_version)
    runner = BuildRunner(resources, Background())
    claim = type(resources.builds).claim
    closing: list[asyncio.Task[None]] = []

    async def last(self: Any, build_id: str, fence: int) -> Build:
        build = await claim(self, build_id, fence)
        closing.append(asyncio.create_task(runner.close()))  # it runs as soon as nothing else
        return build

    monkeypatch.setattr(type(resources.builds), "claim", last)
    assert await runner.start(BuildJob(build_id, 0))
    await closing[0]
    given = await resources.builds.get_build(build_id)
    assert (given.unreturned, given.error) == (0, "the worker was stopped")


def shown(name: str, **labels: str) -> float:
    """The present value of a metric."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_the_metrics_show_what_waits(resources: Resources, model_version: str) -> None:
    """Open builds and the age of the oldest, marked users, jobs, and when it was last looked at."""
    build_id = await requested(resources, model_version)
    hour_ago = timestamp(now() - timedelta(hours=1))
    await rewrite(resources, "builds", {"build_id": build_id}, requested_at=hour_ago)
    await marked_user(resources)
    metrics.RECONCILED_AT.set(0)
    await reconciled(resources)
    assert shown("k9_builds_open", status="queued") >= 1
    assert shown("k9_oldest_open_build_seconds") >= 3600
    assert shown("k9_oldest_waiting_build_seconds") >= 3600
    assert shown("k9_deletions_waiting", kind="user") >= 1
    assert shown("k9_reconciled_timestamp_seconds") > 0
    assert (await resources.queue.depth() or 0) >= 1
