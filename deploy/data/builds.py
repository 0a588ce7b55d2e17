"""Builds after a restore: requested once ModelVersionIndex has the rows, and waited for."""

import asyncio
from contextlib import aclosing
from typing import Final, Literal

import msgspec

from core.dynamo import tables
from core.dynamo.expressions import equals, expressions
from core.dynamo.wire import Item
from core.errors import EmptyModel, K9Error
from core.models import Build, BuildParameters
from core.resources import Resources
from deploy.terminal import BuildDisplay

_INDEX_TIMEOUT_S: Final = 120.0
_INDEX_POLL_S: Final = 0.5
_BUILD_POLL_S: Final = 0.2


class BuildRequest(msgspec.Struct, frozen=True):
    """What was done about one model version."""

    model_version: str
    outcome: Literal["requested", "empty", "failed"]
    detail: str = ""
    """The build's id, or why there is none."""


class IndexProbes:
    """One row of each shard, to see whether ModelVersionIndex has caught up with the table.

    A build reads that index, which is eventually consistent. Restored rows keep their `updated_at`,
    so one that is missing from the build would not count as a change since it either.
    """

    def __init__(self) -> None:
        self._rows: dict[str, tuple[str, str]] = {}

    def add(self, row: Item) -> None:
        """Notes a row that is about to be written: the last one of each shard is looked for."""
        shard, moment = row.get(tables.MODEL_SHARD), row.get("updated_at")
        if shard is not None and shard.S and moment is not None and moment.S:
            self._rows[shard.S] = (moment.S, row["product_id"].S or "")

    async def wait(self, resources: Resources, timeout_s: float = _INDEX_TIMEOUT_S) -> bool:
        """Waits until the index has all of them; False when it does not in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        for shard, (moment, product_id) in self._rows.items():
            while not await _is_indexed(resources, shard, moment, product_id):
                if loop.time() > until:
                    return False
                await asyncio.sleep(_INDEX_POLL_S)
        return True


async def _is_indexed(resources: Resources, shard: str, moment: str, product_id: str) -> bool:
    reply = await resources.dynamo.call(
        "query",
        TableName=resources.settings.table(tables.EMBEDDINGS.name),
        IndexName=tables.MODEL_VERSION_INDEX,
        **expressions(
            key=equals(tables.MODEL_SHARD, shard) & equals("updated_at", moment),
            projection=("product_id",),
        ),
    )
    # Up to 1,000 rows of a batch share one moment, which may be more than a page of 1 MB.
    found = {item["product_id"].S for item in reply["Items"]}
    return product_id in found or "LastEvaluatedKey" in reply


async def request_builds(
    resources: Resources, models: list[Item], probes: IndexProbes
) -> list[BuildRequest]:
    """Requests a build of each model version, with the parameters of its previous current build.

    Without a current build they are those of the last one published. A failure does not keep the
    others from being requested: it is in the result.

    Args:
        resources: Of the environment that was restored.
        models: The records of the model versions before the restore changed them.
        probes: The rows to wait for.
    """
    try:
        late = "" if await probes.wait(resources) else " (ModelVersionIndex is behind the table)"
    except K9Error as error:
        late = f" ({error})"
    requests = []
    for model in sorted(models, key=lambda item: item["model_version"].S or ""):
        name = model["model_version"].S or ""
        try:
            parameters = await _parameters(resources, model)
            build = await resources.build_service.request(name, parameters)
        except EmptyModel:
            requests.append(BuildRequest(name, "empty", "it has no rows"))
        except K9Error as error:
            requests.append(BuildRequest(name, "failed", f"{error}{late}"))
        else:
            requests.append(BuildRequest(name, "requested", f"{build.build_id}{late}"))
    return requests


async def _parameters(resources: Resources, model: Item) -> BuildParameters:
    current = model.get("current_build_id")
    if current and current.S:
        build = await resources.builds.find_build(current.S)
    else:  # an interrupted run of the same restore may have taken it away
        build = await _last_published(resources, model["model_version"].S or "")
    return BuildParameters() if build is None else build.parameters.again()


async def _last_published(resources: Resources, model_version: str) -> Build | None:
    model = await resources.models.get_model(model_version)
    async with aclosing(resources.builds.all_builds(model_version, model.generation)) as builds:
        async for build in builds:
            if build.status == "published" and build.verifies is None:
                return build
    return None


async def wait_for_build(resources: Resources, build_id: str, display: BuildDisplay) -> Build:
    """Polls a build, and shows its progress, until it has ended."""
    while True:
        build = await resources.builds.get_build(build_id)
        step = build.progress
        display.show(
            build.status, step.stage, step.done, step.total, attempt=build.fence, error=build.error
        )
        if not build.open:
            return build
        await asyncio.sleep(_BUILD_POLL_S)
