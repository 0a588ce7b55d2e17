"""A build of each model version whose data came back, once its index shows the rows."""

import asyncio
from typing import Final, Literal

import msgspec

from core.dynamo import tables
from core.dynamo.expressions import equals, expressions
from core.dynamo.wire import Item
from core.errors import EmptyModel, K9Error, NotFound
from core.models import BuildParameters
from core.resources import Resources

_SETTLE_S: Final = 120.0
_POLL_S: Final = 0.5


class Requested(msgspec.Struct, frozen=True):
    """What was done about one model version."""

    model_version: str
    outcome: Literal["requested", "empty", "failed"]
    detail: str = ""
    """The build's id, or why there is none."""


class Probes:
    """One row of each shard, by which to see whether ModelVersionIndex has come after the table.

    A build pulls from that index, which follows the table with a delay. Its rows keep their old
    `updated_at`, so one that came late would not count as a change since the build.
    """

    def __init__(self) -> None:
        self._rows: dict[str, tuple[str, str]] = {}

    def note(self, row: Item) -> None:
        """Takes note of a row that is about to be written: of each shard the last one stays."""
        shard, moment = row.get(tables.MODEL_SHARD), row.get("updated_at")
        if shard is not None and shard.S and moment is not None and moment.S:
            self._rows[shard.S] = (moment.S, row["product_id"].S or "")

    async def seen(self, resources: Resources, timeout_s: float = _SETTLE_S) -> bool:
        """Waits until the index shows all of them; False when it does not in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        for shard, (moment, product_id) in self._rows.items():
            while not await _shows(resources, shard, moment, product_id):
                if loop.time() > until:
                    return False
                await asyncio.sleep(_POLL_S)
        return True


async def _shows(resources: Resources, shard: str, moment: str, product_id: str) -> bool:
    reply = await resources.dynamo.call(
        "query",
        TableName=resources.settings.table(tables.EMBEDDINGS.name),
        IndexName=tables.MODEL_VERSION_INDEX,
        **expressions(
            key=equals(tables.MODEL_SHARD, shard) & equals("updated_at", moment),
            projection=("product_id",),
        ),
    )
    # A batch's rows share one moment, up to 1,000 of them, which are no page of 1 MB but in part.
    found = {item["product_id"].S for item in reply["Items"]}
    return product_id in found or "LastEvaluatedKey" in reply


async def rebuild(resources: Resources, models: list[Item], probes: Probes) -> list[Requested]:
    """Requests a build of each model version, with the parameters of the one that was current.

    None of them failing takes another along: what failed is in the answer.

    Args:
        resources: Of the environment that was restored.
        models: The records of the model versions as they were before.
        probes: Where to look for their rows.
    """
    try:
        late = "" if await probes.seen(resources) else " (ModelVersionIndex is behind the table)"
    except K9Error as error:
        late = f" ({error})"
    requested = []
    for model in sorted(models, key=lambda item: item["model_version"].S or ""):
        name = model["model_version"].S or ""
        try:
            parameters = await _parameters(resources, model)
            build = await resources.build_service.request(name, parameters)
        except EmptyModel:
            requested.append(Requested(name, "empty", "it has no rows"))
        except K9Error as error:
            requested.append(Requested(name, "failed", f"{error}{late}"))
        else:
            requested.append(Requested(name, "requested", f"{build.build_id}{late}"))
    return requested


async def _parameters(resources: Resources, model: Item) -> BuildParameters:
    current = model.get("current_build_id")
    if current is None or not current.S:
        return BuildParameters()
    try:
        return (await resources.builds.get_build(current.S)).parameters.again()
    except NotFound:
        return BuildParameters()
