"""The builds table's promises, on every emulator: one open build, one owner, one publish."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import msgspec
import pytest

from core.dynamo.client import Dynamo, open_dynamo
from core.errors import LeaseLost, NotFound
from core.models import Build, BuildParameters, Model, Progress
from core.repositories.builds import BuildRepository
from core.repositories.models import ModelRepository
from core.settings import Settings


@pytest.fixture
async def dynamo(settings: Settings) -> AsyncIterator[Dynamo]:
    """An open client."""
    async with open_dynamo(settings) as client:
        yield client


@pytest.fixture
def models(dynamo: Dynamo, settings: Settings) -> ModelRepository:
    """The repository under test."""
    return ModelRepository(dynamo, settings)


@pytest.fixture
def builds(dynamo: Dynamo, settings: Settings) -> BuildRepository:
    """The repository under test."""
    return BuildRepository(dynamo, settings)


@pytest.fixture
async def model(models: ModelRepository) -> Model:
    """A model version of this test's own."""
    return await models.create_model(f"b-{uuid4().hex[:12]}", 2, "cosine", 4)


async def running(builds: BuildRepository, model: Model, lease_s: float | None = None) -> Build:
    """A build that was opened and claimed."""
    build = await builds.open_build(model.model_version, BuildParameters())
    return await builds.claim(build.build_id, build.fence, lease_s=lease_s)


async def test_a_model_has_one_open_build(builds: BuildRepository, model: Model) -> None:
    """A second request, whatever it asks for, is answered with the build that is open."""
    first = await builds.open_build(model.model_version, BuildParameters())
    second = await builds.open_build(model.model_version, BuildParameters(matrix_k=5))
    assert second == first
    assert await builds.get_build(first.build_id) == first


async def test_of_requests_in_flight_together_one_opens(
    builds: BuildRepository, model: Model
) -> None:
    """Concurrent requests all get the same build."""
    opened = await asyncio.gather(
        *(builds.open_build(model.model_version, BuildParameters()) for _ in range(6))
    )
    assert len({build.build_id for build in opened}) == 1


async def test_no_build_without_a_model(builds: BuildRepository) -> None:
    """A build of an unknown model version is refused and leaves nothing open."""
    with pytest.raises(NotFound):
        await builds.open_build("unknown", BuildParameters())
    assert "unknown" not in {build.model_version for build in await builds.list_open()}


async def test_one_worker_claims(builds: BuildRepository, model: Model) -> None:
    """Of workers that claim together one gets the build, under the next fence."""
    build = await builds.open_build(model.model_version, BuildParameters())
    claims = await asyncio.gather(
        *(builds.claim(build.build_id, build.fence) for _ in range(5)), return_exceptions=True
    )
    won = [claim for claim in claims if isinstance(claim, Build)]
    assert [claim.fence for claim in won] == [1]
    assert all(isinstance(claim, LeaseLost) for claim in claims if not isinstance(claim, Build))


async def test_a_lease_that_ran_out_is_claimed_anew(builds: BuildRepository, model: Model) -> None:
    """After its lease the build is another's, and the first owner can change nothing."""
    stalled = await running(builds, model, lease_s=0.001)
    await asyncio.sleep(0.01)
    taken = await builds.claim(stalled.build_id, stalled.fence)
    assert taken.fence == stalled.fence + 1
    for change in (
        builds.beat(stalled, Progress()),
        builds.release(stalled, "late", wait_s=0),
        builds.publish(stalled, model, {}),
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
    builds: BuildRepository, models: ModelRepository, model: Model
) -> None:
    """A published build is the model's current one, once, and opens the way for the next."""
    build = await running(builds, model)
    await builds.publish(build, model, {"rows": 3, "recall": 0.991})
    published = await builds.get_build(build.build_id)
    assert (published.status, published.manifest) == ("published", {"rows": 3, "recall": 0.991})
    after = await models.get_model(model.model_version)
    assert (after.current_build_id, after.current_fence, after.open_build_id) == (
        build.build_id,
        build.fence,
        None,
    )
    with pytest.raises(LeaseLost):
        await builds.publish(build, model, {})
    following = await builds.open_build(model.model_version, BuildParameters())
    assert following.build_id != build.build_id


async def test_a_restore_stops_a_publish(
    builds: BuildRepository,
    models: ModelRepository,
    model: Model,
) -> None:
    """A build of data that was replaced since does not become current."""
    build = await running(builds, model)
    older = msgspec.structs.replace(model, epoch=model.epoch - 1)
    with pytest.raises(LeaseLost):
        await builds.publish(build, older, {})
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
    assert again.error == "DynamoDB was away"
    assert (await builds.claim(build.build_id, build.fence)).fence == build.fence + 1


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
