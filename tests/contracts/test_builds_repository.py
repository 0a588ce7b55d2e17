"""The builds table's promises, on every emulator: one open build, one owner, one publish."""

import asyncio
from uuid import uuid4

import msgspec
import pytest

from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, expressions, key
from core.errors import BuildEnded, LeaseLost, NotFound, NotPromotable, Pinned
from core.models import Build, BuildParameters, Model, Progress, now, timestamp
from core.repositories.builds import BuildRepository
from core.repositories.models import ModelRepository
from core.repositories.promotions import PromotionRepository
from core.repositories.verifications import Verification, VerificationRepository, result_of
from core.settings import Settings


async def running(builds: BuildRepository, model: Model, lease_s: float | None = None) -> Build:
    """A build that was opened and claimed."""
    build = await builds.open_build(model, BuildParameters())
    return await builds.claim(build.build_id, build.fence, lease_s=lease_s)


async def test_a_model_has_one_open_build(builds: BuildRepository, model: Model) -> None:
    """A second request, whatever it asks for, is answered with the build that is open."""
    first = await builds.open_build(model, BuildParameters())
    second = await builds.open_build(model, BuildParameters(matrix_k=5))
    assert second == first
    assert await builds.get_build(first.build_id) == first


async def test_of_requests_in_flight_together_one_opens(
    builds: BuildRepository, model: Model
) -> None:
    """Concurrent requests all get the same build."""
    opened = await asyncio.gather(*(builds.open_build(model, BuildParameters()) for _ in range(6)))
    assert len({build.build_id for build in opened}) == 1


async def test_no_build_without_a_model(builds: BuildRepository) -> None:
    """A build of an unknown model version is refused and leaves nothing open."""
    unknown = Model("unknown", 2, "cosine", 4, timestamp(now()))
    with pytest.raises(NotFound):
        await builds.open_build(unknown, BuildParameters())
    assert "unknown" not in {build.model_version for build in await builds.list_open()}


async def test_one_worker_claims(builds: BuildRepository, model: Model) -> None:
    """Of workers that claim together one gets the build, under the next fence."""
    build = await builds.open_build(model, BuildParameters())
    claims = await asyncio.gather(
        *(builds.claim(build.build_id, build.fence) for _ in range(5)), return_exceptions=True
    )
    won = [claim for claim in claims if isinstance(claim, Build)]
    assert [claim.fence for claim in won] == [1], claims
    assert all(isinstance(claim, LeaseLost) for claim in claims if not isinstance(claim, Build))


async def test_a_lease_that_ran_out_is_claimed_anew(
    builds: BuildRepository, promotions: PromotionRepository, model: Model
) -> None:
    """After its lease the build is another's, and the first owner can change nothing."""
    stalled = await running(builds, model, lease_s=0.001)
    await asyncio.sleep(0.01)
    taken = await builds.claim(stalled.build_id, stalled.fence)
    assert taken.fence == stalled.fence + 1
    for change in (
        builds.beat(stalled, Progress()),
        builds.release(stalled, "late", wait_s=0),
        promotions.publish(stalled, model, {}),
        builds.end(stalled, "failed", "late"),
    ):
        with pytest.raises(LeaseLost):
            await change
    assert msgspec.structs.replace(
        await builds.get_build(taken.build_id), lease_until_ms=0
    ) == msgspec.structs.replace(taken, lease_until_ms=0)


async def test_a_lease_that_holds_is_not_taken(builds: BuildRepository, model: Model) -> None:
    """While the owner's heartbeats come, no one else can claim."""
    build = await running(builds, model)
    beaten = await builds.beat(build, Progress("index", 5, 10))
    assert beaten.progress == Progress("index", 5, 10)
    with pytest.raises(LeaseLost):
        await builds.claim(build.build_id, build.fence)


async def test_publishing_moves_the_model(
    builds: BuildRepository, models: ModelRepository, promotions: PromotionRepository, model: Model
) -> None:
    """A published build is the model's current one, once, and opens the way for the next."""
    build = await running(builds, model)
    await promotions.publish(build, model, {"rows": 3, "recall": 0.991})
    published = await builds.get_build(build.build_id)
    assert (published.status, published.manifest) == ("published", {"rows": 3, "recall": 0.991})
    after = await models.get_model(model.model_version)
    assert (after.current_build_id, after.current_fence, after.open_build_id) == (
        build.build_id,
        build.fence,
        None,
    )
    await promotions.publish(build, model, {"rows": 4})  # its answer was lost, say: nothing changes
    assert await builds.get_build(build.build_id) == published
    following = await builds.open_build(model, BuildParameters())
    assert following.build_id != build.build_id


async def test_a_restore_stops_a_publish(
    builds: BuildRepository, models: ModelRepository, promotions: PromotionRepository, model: Model
) -> None:
    """A build of data that was replaced since does not become current."""
    build = await running(builds, model)
    older = msgspec.structs.replace(model, epoch=model.epoch - 1)
    with pytest.raises(LeaseLost):
        await promotions.publish(build, older, {})
    assert (await models.get_model(model.model_version)).current_build_id is None
    assert (await builds.get_build(build.build_id)).status == "running"


async def test_a_failed_build_says_why_and_closes(
    builds: BuildRepository, models: ModelRepository, model: Model
) -> None:
    """A build that failed keeps its reason; the model's current build stays as it was."""
    build = await running(builds, model)
    assert build.build_id in {b.build_id for b in await builds.list_open()}
    await builds.end(build, "failed", "recall 0.90 is under 0.95")
    ended = await builds.get_build(build.build_id)
    assert (ended.status, ended.error) == ("failed", "recall 0.90 is under 0.95")
    assert build.build_id not in {b.build_id for b in await builds.list_open()}
    assert (await models.get_model(model.model_version)).open_build_id is None


async def test_a_build_given_back_waits_before_its_next_claim(
    builds: BuildRepository, model: Model
) -> None:
    """A released build cannot be claimed before its wait is over, and can after."""
    build = await running(builds, model)
    await builds.release(build, "DynamoDB was away", wait_s=60)
    with pytest.raises(LeaseLost):
        await builds.claim(build.build_id, build.fence)
    again = await builds.release(build, "DynamoDB was away", wait_s=-1)
    assert (again.error, again.faults, again.unreturned) == ("DynamoDB was away", 1, 0)
    taken = await builds.claim(build.build_id, build.fence)
    assert (taken.fence, taken.unreturned) == (build.fence + 1, 1)
    stopped = await builds.release(taken, "the worker was stopped", wait_s=-1, fault=False)
    assert (stopped.faults, stopped.unreturned) == (1, 0)


async def test_tries_that_never_come_back_are_counted(
    builds: BuildRepository, model: Model
) -> None:
    """Each claim over a lease that ran out is a worker that was lost with its build."""
    build = await running(builds, model, lease_s=0.001)
    for lost in (1, 2):
        await asyncio.sleep(0.01)
        build = await builds.claim(build.build_id, build.fence, lease_s=0.001)
        assert (build.unreturned, build.faults) == (lost + 1, 0)


async def test_history_is_newest_first_by_pages(builds: BuildRepository, model: Model) -> None:
    """Every build of a model version is listed once, the newest first."""
    made = []
    for _ in range(5):
        build = await running(builds, model)
        await builds.end(build, "failed", "on purpose")
        made.append(build.build_id)
    seen: list[str] = []
    position = None
    while True:
        page, position = await builds.list_builds(model.model_version, limit=2, position=position)
        seen += [build.build_id for build in page]
        if position is None:
            break
    assert seen == made[::-1]


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_cancelled_build_is_nobodys(
    builds: BuildRepository,
    promotions: PromotionRepository,
    models: ModelRepository,
    model: Model,
    claimed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Cancelling ends a build that waits or runs, takes it from its worker, and frees the model."""
    build = await builds.open_build(model, BuildParameters())
    if claimed:
        build = await builds.claim(build.build_id, build.fence)
    cancelled = await builds.cancel(build.build_id)
    assert (cancelled.status, cancelled.fence) == ("cancelled", build.fence + 1)
    assert await builds.get_build(build.build_id) == cancelled
    assert (await models.get_model(model.model_version)).open_build_id is None
    assert build.build_id not in {b.build_id for b in await builds.list_open()}
    for change in (
        builds.beat(build, Progress()),
        builds.claim(build.build_id, build.fence),
        builds.claim(build.build_id, cancelled.fence),
        promotions.publish(build, model, {}),
    ):
        with pytest.raises(LeaseLost):
            await change
    with pytest.raises(BuildEnded, match="cancelled"):
        await builds.cancel(build.build_id)
    assert await builds.open_build(model, BuildParameters()) != build


async def test_what_is_not_there_is_not_cancelled(builds: BuildRepository) -> None:
    """An unknown build cannot be cancelled."""
    with pytest.raises(NotFound):
        await builds.cancel("unknown")


async def test_either_the_cancel_or_the_publish_counts(
    builds: BuildRepository, promotions: PromotionRepository, models: ModelRepository, model: Model
) -> None:
    """Of a cancel and a publish in flight together one wins, and the other is told."""
    for _ in range(5):
        build = await running(builds, model)
        published, cancelled = await asyncio.gather(
            promotions.publish(build, model, {}),
            builds.cancel(build.build_id),
            return_exceptions=True,
        )
        ended = await builds.get_build(build.build_id)
        current = (await models.get_model(model.model_version)).current_build_id
        if ended.status == "published":
            assert published is None
            assert isinstance(cancelled, BuildEnded)
            assert current == build.build_id
        else:
            assert ended.status == "cancelled"
            assert isinstance(published, LeaseLost)
            assert current != build.build_id


async def published_build(
    builds: BuildRepository, promotions: PromotionRepository, model: Model
) -> Build:
    """A build that was published."""
    build = await running(builds, model)
    await promotions.publish(build, model, {"epoch": model.epoch})
    return await builds.get_build(build.build_id)


async def test_promoting_moves_and_pins(
    builds: BuildRepository, promotions: PromotionRepository, models: ModelRepository, model: Model
) -> None:
    """An earlier build becomes current and stays so until an operator's build is published."""
    first = await published_build(builds, promotions, model)
    assert first.ended_at is not None
    second = await published_build(builds, promotions, model)
    await promotions.promote(model.model_version, first.build_id)
    after = await models.get_model(model.model_version)
    assert (after.current_build_id, after.current_fence) == (first.build_id, first.fence)
    assert after.pinned
    await promotions.promote(model.model_version, second.build_id)
    assert (await models.get_model(model.model_version)).current_build_id == second.build_id
    third = await published_build(builds, promotions, model)
    after = await models.get_model(model.model_version)
    assert (after.current_build_id, after.pinned) == (third.build_id, False)


async def test_only_a_published_build_of_the_model_is_promoted(
    builds: BuildRepository, promotions: PromotionRepository, models: ModelRepository, model: Model
) -> None:
    """One that failed, is removed, or is another model's is refused; nothing moves."""
    first = await published_build(builds, promotions, model)
    await published_build(builds, promotions, model)
    failed = await running(builds, model)
    await builds.end(failed, "failed", "on purpose")
    before = await models.get_model(model.model_version)
    with pytest.raises(NotPromotable, match="failed"):
        await promotions.promote(model.model_version, failed.build_id)
    other = await models.create_model(f"b-{uuid4().hex[:12]}", 2, "cosine", 4)
    for name, build_id in ((other.model_version, first.build_id), (model.model_version, "x")):
        with pytest.raises(NotFound):
            await promotions.promote(name, build_id)
    await promotions.retire(first)
    assert await promotions.remove(await builds.get_build(first.build_id))
    with pytest.raises(NotPromotable, match="removed"):
        await promotions.promote(model.model_version, first.build_id)
    assert await models.get_model(model.model_version) == before


async def test_what_is_current_or_was_promoted_is_not_removed(
    builds: BuildRepository, promotions: PromotionRepository, model: Model
) -> None:
    """Promoting takes a build back that was about to be removed."""
    first = await published_build(builds, promotions, model)
    await published_build(builds, promotions, model)
    await promotions.retire(first)
    retired = await builds.get_build(first.build_id)
    assert retired.retired_at is not None
    await promotions.promote(model.model_version, first.build_id)
    await published_build(builds, promotions, model)
    assert not await promotions.remove(retired)
    there = await builds.get_build(first.build_id)
    assert (there.retired_at, there.removed_at) == (None, None)


async def test_the_current_build_is_neither_retired_nor_removed(
    builds: BuildRepository,
    promotions: PromotionRepository,
    dynamo: Dynamo,
    settings: Settings,
    model: Model,
) -> None:
    """Also where it was looked at before it became current again; others are noted once."""
    first = await published_build(builds, promotions, model)
    second = await published_build(builds, promotions, model)
    await promotions.promote(model.model_version, first.build_id)
    await promotions.retire(first)
    assert (await builds.get_build(first.build_id)).retired_at is None
    await promotions.retire(second)
    retired = await builds.get_build(second.build_id)
    assert retired.retired_at is not None
    await promotions.retire(second)
    assert await builds.get_build(second.build_id) == retired
    # A worker of before would have noted the current one: it is not removed all the same.
    note = Update(set={"retired_at": retired.retired_at})
    await dynamo.call(
        "update_item",
        TableName=settings.table("builds"),
        Key=key(build_id=first.build_id),
        **expressions(update=note),
    )
    noted = await builds.get_build(first.build_id)
    assert not await promotions.remove(noted)
    await promotions.keep(noted)
    assert await builds.get_build(first.build_id) == first
    assert await promotions.remove(retired)


async def test_an_automatic_build_leaves_a_pinned_one_alone(
    builds: BuildRepository, promotions: PromotionRepository, models: ModelRepository, model: Model
) -> None:
    """It is neither opened nor published over a pinned build, unless an operator asks for it."""
    first = await published_build(builds, promotions, model)
    asked = await builds.open_build(model, BuildParameters(), automatic=True)
    claimed = await builds.claim(asked.build_id, asked.fence)
    await promotions.promote(model.model_version, first.build_id)
    with pytest.raises(Pinned):
        await promotions.publish(claimed, model, {})
    with pytest.raises(Pinned):
        await builds.open_build(model, BuildParameters(), automatic=True)
    theirs = await builds.open_build(model, BuildParameters())
    assert (theirs.build_id, theirs.automatic) == (asked.build_id, False)
    await promotions.publish(claimed, model, {})
    after = await models.get_model(model.model_version)
    assert (after.current_build_id, after.pinned) == (asked.build_id, False)


async def test_a_verification_is_worked_on_like_a_build_and_listed_with_none(
    builds: BuildRepository,
    promotions: PromotionRepository,
    dynamo: Dynamo,
    settings: Settings,
    model: Model,
) -> None:
    """It is open until it ends, is no part of its model's history, and keeps what it found."""
    build = await published_build(builds, promotions, model)
    verifications = VerificationRepository(dynamo, settings)
    opened = await verifications.open(build)
    assert opened.build_id in {b.build_id for b in await builds.list_open()}
    claimed = await builds.claim(opened.build_id, opened.fence)
    assert (claimed.verifies, claimed.model_version) == (build.build_id, model.model_version)
    with pytest.raises(NotFound):
        await builds.cancel(opened.build_id)
    assert result_of(claimed) is None
    found = Verification(build.build_id, model.model_version, ("ids",), (), 3)
    await verifications.finish(claimed, found)
    assert result_of(await builds.get_build(opened.build_id)) == found
    assert opened.build_id not in {b.build_id for b in await builds.list_open()}
    history, _ = await builds.list_builds(model.model_version, limit=10)
    assert [entry.build_id for entry in history] == [build.build_id]
    failing = await builds.claim((await verifications.open(build)).build_id, 0)
    await builds.end(failing, "failed", "no such rows")
    assert (await builds.get_build(failing.build_id)).status == "failed"
