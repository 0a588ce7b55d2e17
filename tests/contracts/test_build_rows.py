"""Rows of the builds table that cannot be read, and writes whose answers are lost."""

import asyncio
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, equals, expressions, key
from core.dynamo.tables import OPEN, OPEN_BUILDS_INDEX
from core.errors import BuildEnded, Corrupt
from core.models import BuildParameters, Model, Progress
from core.repositories import models as models_table
from core.repositories.builds import BuildRepository
from core.repositories.models import ModelRepository
from core.repositories.verifications import VerificationRepository
from core.settings import Settings
from tests.contracts.test_builds_repository import running


async def rewrite(dynamo: Dynamo, settings: Settings, build_id: str, **attributes: str) -> None:
    """Gives a build's row other attributes, as another K9 would."""
    await dynamo.call(
        "update_item",
        TableName=settings.table("builds"),
        Key=key(build_id=build_id),
        **expressions(update=Update(set=dict(attributes))),
    )


async def test_a_row_that_cannot_be_read_hides_no_other(
    builds: BuildRepository, dynamo: Dynamo, settings: Settings, model: Model
) -> None:
    """It is passed over in what is open and in the history, counted, and refused by itself."""
    made = []
    for _ in range(2):
        made.append(await running(builds, model))
        await builds.end(made[-1], "failed", "on purpose")
    made.append(await running(builds, model))
    await rewrite(dynamo, settings, made[1].build_id, parameters="none that is known")
    await rewrite(dynamo, settings, made[2].build_id, status="paused")
    counter = "k9_build_rows_unreadable_total"
    before = REGISTRY.get_sample_value(counter) or 0
    assert made[2].build_id not in {build.build_id for build in await builds.list_open()}
    assert REGISTRY.get_sample_value(counter) == before + 1
    seen, pages, position = [], 0, None
    while pages == 0 or position is not None:
        page, position = await builds.list_builds(model.model_version, limit=1, position=position)
        seen += [build.build_id for build in page]
        pages += 1
    assert seen == [made[0].build_id]
    assert pages >= 3
    with pytest.raises(Corrupt, match="status"):
        await builds.get_build(made[2].build_id)


async def test_earlier_workers_do_not_see_what_they_would_fail(
    builds: BuildRepository, models: ModelRepository, dynamo: Dynamo, settings: Settings
) -> None:
    """23e14f8 queries the value 1: it has builds of its own model versions, and no others."""
    later = await models.create_model("m-later", 2, "cosine", 4)
    early = msgspec.structs.replace(later, model_version="m-early", generation=0)
    item = models_table.encode_model(early)
    del item["generation"]
    await dynamo.call("put_item", TableName=settings.table("models"), Item=item)
    opened = [await builds.open_build(each, BuildParameters()) for each in (early, later)]
    opened.append(await VerificationRepository(dynamo, settings).open(opened[0]))
    reply = await dynamo.call(
        "query",
        TableName=settings.table("builds"),
        IndexName=OPEN_BUILDS_INDEX,
        **expressions(key=equals(OPEN, "1")),
    )
    visible = {item["build_id"].S for item in reply["Items"]}
    ids = [build.build_id for build in opened]
    assert visible.intersection(ids) == {ids[0]}
    listed = [build.build_id for build in await builds.list_open() if build.build_id in ids]
    assert sorted(listed) == sorted(ids)
    for build_id in ids:
        claimed = await builds.claim(build_id, 0)
        await builds.end(claimed, "failed", "on purpose")
    assert not {build.build_id for build in await builds.list_open()}.intersection(ids)


async def test_a_stage_that_is_not_known_stops_nothing(
    builds: BuildRepository, dynamo: Dynamo, settings: Settings, model: Model
) -> None:
    """A newer K9 may write one; the build is read without its progress, and can be claimed."""
    build = await running(builds, model, lease_s=0.001)
    await rewrite(dynamo, settings, build.build_id, progress='{"stage":"quantize","done":1}')
    await asyncio.sleep(0.01)
    (there,) = [b for b in await builds.list_open() if b.build_id == build.build_id]
    assert (there.status, there.progress) == ("running", Progress())
    taken = await builds.claim(build.build_id, build.fence)
    assert (await builds.beat(taken, Progress("pull"))).progress == Progress("pull")


class Stuttering(Dynamo):
    """The client, which makes the first transaction twice: its first answer was lost."""

    def __init__(self, dynamo: Dynamo) -> None:
        super().__init__(None, deadline_s=1)
        self._dynamo = dynamo
        self.done = False

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Passes the call on."""
        reply = await self._dynamo.call(operation, **parameters)
        if operation == "transact_write_items" and not self.done:
            self.done = True
            return await self._dynamo.call(operation, **parameters)
        return reply


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_cancel_whose_answer_is_lost_is_told_as_done(
    dynamo: Dynamo,
    models: ModelRepository,
    settings: Settings,
    model: Model,
    claimed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """It is sent again and refused, since it was done; another cancel is one too many."""
    builds = BuildRepository(dynamo, settings)
    build = await builds.open_build(model, BuildParameters())
    if claimed:
        build = await builds.claim(build.build_id, build.fence)
    cancelled = await BuildRepository(Stuttering(dynamo), settings).cancel(build.build_id)
    assert (cancelled.status, cancelled.fence) == ("cancelled", build.fence + 1)
    assert await builds.get_build(build.build_id) == cancelled
    assert (await models.get_model(model.model_version)).open_build_id is None
    with pytest.raises(BuildEnded, match="cancelled"):
        await builds.cancel(build.build_id)


async def test_a_cancel_that_came_second_is_not_told_as_done(
    builds: BuildRepository, model: Model
) -> None:
    """Of two at the same time one has ended the build."""
    build = await running(builds, model)
    told = await asyncio.gather(
        *(builds.cancel(build.build_id) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in told) == ["Build", "BuildEnded"]
