"""Builds: the table that says which are open, who has claimed them, and what came of them."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import (
    Condition,
    Update,
    below,
    equals,
    exists,
    expressions,
    key,
    missing,
)
from core.dynamo.items import Codec
from core.dynamo.wire import Item, request_item
from core.errors import (
    ConditionFailed,
    LeaseLost,
    NotFound,
    TransactionFailed,
    Unavailable,
)
from core.models import Build, BuildParameters, BuildStatus, Model, Progress, now, timestamp
from core.repositories import transactions
from core.repositories.idempotency import lost
from core.repositories.models import MODEL_CODEC
from core.repositories.transactions import Part, refused
from core.settings import Settings

BUILD_CODEC = Codec(Build)

_OPEN_TRIES = 5


class Position(msgspec.Struct, frozen=True):
    """Where a listing of builds goes on."""

    build_id: str
    requested_at: str


def _new_build_id() -> str:
    """48 bits of time and 80 of chance, in hex: unique, sorted by age, good in a path."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _milliseconds(seconds_from_now: float) -> int:
    return time.time_ns() // 1_000_000 + int(seconds_from_now * 1000)


class BuildRepository:
    """The builds table, and the model's record where both move in one transaction."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._builds = settings.table(tables.BUILDS.name)
        self._models = settings.table(tables.MODELS.name)
        self._lease_s = settings.building.lease_s

    async def get_build(self, build_id: str) -> Build:
        """One build, read consistently.

        Raises:
            NotFound: there is none.
        """
        reply = await self._dynamo.call(
            "get_item", TableName=self._builds, Key=key(build_id=build_id), ConsistentRead=True
        )
        if "Item" not in reply:
            raise NotFound(f"there is no build {build_id!r}")
        return BUILD_CODEC.decode(reply["Item"])

    async def list_builds(
        self, model_version: str, *, limit: int, position: Position | None = None
    ) -> tuple[list[Build], Position | None]:
        """Up to `limit` builds of a model version, newest first, and where to go on."""
        start: dict[str, Any] = {}
        if position:
            start["ExclusiveStartKey"] = key(
                build_id=position.build_id,
                model_version=model_version,
                requested_at=position.requested_at,
            )
        reply = await self._dynamo.call(
            "query",
            TableName=self._builds,
            IndexName=tables.MODEL_BUILDS_INDEX,
            ScanIndexForward=False,
            Limit=limit,
            **start,
            **expressions(key=equals("model_version", model_version)),
        )
        builds = [BUILD_CODEC.decode(item) for item in reply["Items"]]
        last: Item | None = reply.get("LastEvaluatedKey")
        if last is None:
            return builds, None
        return builds, Position(last["build_id"].S or "", last["requested_at"].S or "")

    async def list_open(self) -> list[Build]:
        """Every build that has not ended, oldest first; eventually consistent."""
        builds: list[Build] = []
        start: dict[str, Any] = {}
        while True:
            reply = await self._dynamo.call(
                "query",
                TableName=self._builds,
                IndexName=tables.OPEN_BUILDS_INDEX,
                **start,
                **expressions(key=equals(tables.OPEN, tables.OPEN_VALUE)),
            )
            builds += [BUILD_CODEC.decode(item) for item in reply["Items"]]
            if "LastEvaluatedKey" not in reply:
                return builds
            start = {"ExclusiveStartKey": request_item(reply["LastEvaluatedKey"])}

    async def open_build(
        self,
        model_version: str,
        parameters: BuildParameters,
        completed: Callable[[Build], Sequence[Part]] = lambda _build: (),
    ) -> Build:
        """Writes a new build and opens it for its model in one transaction.

        Returns the build that is open already where there is one; `completed` gives what else
        belongs to the transaction of a new one.

        Raises:
            NotFound: there is no such model version.
            InFlight: the idempotency claim among those parts was lost.
            Unavailable: other writes of the model's record kept coming between.
        """
        build = Build(
            build_id=_new_build_id(),
            model_version=model_version,
            status="queued",
            requested_at=timestamp(now()),
            parameters=parameters,
        )
        item = {**BUILD_CODEC.encode(build), tables.OPEN: {"S": tables.OPEN_VALUE}}
        free = exists("model_version") & missing("open_build_id")
        change = Update(set={"open_build_id": build.build_id})
        for _ in range(_OPEN_TRIES):
            try:
                await transactions.transact(
                    self._dynamo,
                    transactions.put(self._builds, item, missing("build_id")),
                    self._model_update(model_version, change, free),
                    *completed(build),
                )
            except TransactionFailed as failed:
                if not refused(failed, 1):
                    raise lost() from None
                already = await self._open_build_of(model_version)
                if already is not None:
                    return already
            else:
                return build
        raise Unavailable(f"the build of {model_version} could not be opened; try again")

    async def claim(self, build_id: str, fence: int, *, lease_s: float | None = None) -> Build:
        """Takes a build that waits, or whose lease has run out, under the next fence.

        Raises:
            LeaseLost: it ended, or another worker has it.
        """
        waits = equals("status", "queued")
        stalled = equals("status", "running") & below("lease_until_ms", _milliseconds(0))
        return await self._update(
            build_id,
            Update(
                set={
                    "status": "running",
                    "fence": fence + 1,
                    "lease_until_ms": _milliseconds(lease_s or self._lease_s),
                },
                set_if_missing={"started_at": timestamp(now())},
            ),
            equals("fence", fence) & (waits | stalled),
        )

    async def beat(self, build: Build, progress: Progress) -> Build:
        """Renews the lease and tells how far the build is.

        Raises:
            LeaseLost: the build is not this worker's any more.
        """
        return await self._update(
            build.build_id,
            Update(
                set={
                    "lease_until_ms": _milliseconds(self._lease_s),
                    "progress": msgspec.json.encode(progress).decode(),
                }
            ),
            _ours(build),
        )

    async def release(self, build: Build, error: str, *, wait_s: float) -> Build:
        """Gives up the claim after a passing fault; the build may be claimed after `wait_s`.

        Raises:
            LeaseLost: the build is not this worker's any more.
        """
        return await self._update(
            build.build_id,
            Update(set={"lease_until_ms": _milliseconds(wait_s), "error": error}),
            _ours(build),
        )

    async def publish(self, build: Build, model: Model, manifest: dict[str, Any]) -> None:
        """Makes the build current: the build ends and the model's record moves, or neither.

        Raises:
            LeaseLost: the build is not this worker's any more, or the data was restored since.
        """
        await self._end(
            build,
            Update(
                set={
                    "status": "published",
                    "ended_at": timestamp(now()),
                    "manifest": msgspec.json.encode(manifest).decode(),
                    "progress": msgspec.json.encode(Progress("publish", 1, 1)).decode(),
                },
                remove=(tables.OPEN, "error"),
            ),
            Update(
                set={
                    "current_build_id": build.build_id,
                    "current_fence": build.fence,
                    "pinned": False,
                },
                remove=("open_build_id",),
            ),
            equals("epoch", model.epoch),
        )

    async def end(self, build: Build, status: BuildStatus, error: str) -> None:
        """Ends a build that is not published: `failed` or `cancelled`.

        Raises:
            LeaseLost: the build is not this worker's any more.
        """
        await self._end(
            build,
            Update(
                set={"status": status, "ended_at": timestamp(now()), "error": error},
                remove=(tables.OPEN,),
            ),
            Update(remove=("open_build_id",)),
            None,
        )

    async def _end(
        self, build: Build, ended: Update, moved: Update, also: Condition | None
    ) -> None:
        holds = equals("open_build_id", build.build_id)
        try:
            await transactions.transact(
                self._dynamo,
                transactions.update(
                    self._builds, key(build_id=build.build_id), ended, _ours(build)
                ),
                self._model_update(build.model_version, moved, holds & also if also else holds),
            )
        except TransactionFailed:
            raise LeaseLost(f"build {build.build_id} has another owner now") from None

    async def _open_build_of(self, model_version: str) -> Build | None:
        reply = await self._dynamo.call(
            "get_item",
            TableName=self._models,
            Key=key(model_version=model_version),
            ConsistentRead=True,
        )
        if "Item" not in reply:
            raise NotFound(f"there is no model version {model_version!r}")
        open_build_id = MODEL_CODEC.decode(reply["Item"]).open_build_id
        return await self.get_build(open_build_id) if open_build_id else None

    async def _update(self, build_id: str, update: Update, condition: Condition) -> Build:
        try:
            reply = await self._dynamo.call(
                "update_item",
                TableName=self._builds,
                Key=key(build_id=build_id),
                ReturnValues="ALL_NEW",
                **expressions(update=update, condition=condition),
            )
        except ConditionFailed:
            raise LeaseLost(f"build {build_id} has another owner now, or has ended") from None
        return BUILD_CODEC.decode(reply["Attributes"])

    def _model_update(self, model_version: str, change: Update, condition: Condition) -> Part:
        return transactions.update(
            self._models, key(model_version=model_version), change, condition
        )


def _ours(build: Build) -> Condition:
    return equals("fence", build.fence) & equals("status", "running")
