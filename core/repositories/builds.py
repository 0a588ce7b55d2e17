"""Builds: which are open, which worker has claimed each, and how they ended."""

from collections.abc import AsyncGenerator, Sequence

import msgspec

from core import telemetry, tracing
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, differs, equals, key, missing
from core.errors import (
    BuildEnded,
    ConditionFailed,
    LeaseLost,
    ModelBeingDeleted,
    NotFound,
    Pinned,
    TransactionFailed,
    Unavailable,
)
from core.models import Build, BuildParameters, Model, Progress, now, timestamp
from core.repositories import transactions
from core.repositories.build_rows import decode, decode_all, open_row
from core.repositories.idempotency import Claim, completion
from core.repositories.leased_rows import LeasedRows, new_id, ours, still_open
from core.repositories.models import read_model, same_model
from core.repositories.transactions import CONFLICTS, Part, refused
from core.settings import Settings

_PAGE = 20


class BuildPosition(msgspec.Struct, frozen=True):
    """A position in a list of builds: the last one of a page."""

    build_id: str
    requested_at: str


class BuildRepository(LeasedRows[Build]):
    """The builds table, and the model's record where both change in one transaction."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        super().__init__(
            dynamo,
            settings.table(tables.BUILDS.name),
            "build_id",
            decode=decode,
            decode_all=decode_all,
            lease_s=settings.building.lease_s,
        )
        self._models = settings.table(tables.MODELS.name)

    async def get_build(self, build_id: str) -> Build:
        """One build, read consistently.

        Raises:
            NotFound: there is none.
        """
        build = await self.find_build(build_id)
        if build is None:
            raise NotFound(f"there is no build {build_id!r}")
        return build

    async def find_build(self, build_id: str) -> Build | None:
        """One build, read consistently; None if there is none."""
        return await self._find(build_id)

    async def list_builds(
        self,
        model_version: str,
        *,
        limit: int,
        position: BuildPosition | None = None,
        generation: int | None = None,
    ) -> tuple[list[Build], BuildPosition | None]:
        """Up to `limit` builds of a model version, newest first, and the position to continue from.

        Unreadable rows are skipped, and with a `generation` the rows of others: the index lags
        behind removals.
        """
        at = None if position is None else (position.build_id, position.requested_at)
        found, further = await self._list_page(tables.MODEL_BUILDS_INDEX, model_version, limit, at)
        builds = [build for build in found if generation in {None, build.generation}]
        return builds, None if further is None else BuildPosition(*further)

    async def all_builds(
        self, model_version: str, generation: int | None = None
    ) -> AsyncGenerator[Build, None]:
        """Every build of a model version, newest first, as `list_builds` has them."""
        position: BuildPosition | None = None
        while True:
            builds, position = await self.list_builds(
                model_version, limit=_PAGE, position=position, generation=generation
            )
            for build in builds:
                yield build
            if position is None:
                return

    async def list_open(self) -> list[Build]:
        """Every open build and verification, oldest first; eventually consistent.

        Unreadable rows are skipped.
        """
        return await self._list_open(tables.OPEN_BUILDS_INDEX, tables.OPEN_VALUES)

    async def open_build(
        self,
        model: Model,
        parameters: BuildParameters,
        claim: Claim | None = None,
        *,
        automatic: bool = False,
    ) -> Build:
        """Writes a new build and opens it for its model version, in one transaction.

        Returns the open build if there is one; if that is automatic and an operator requests the
        same, it becomes the operator's. A new build completes the claim.

        Raises:
            NotFound: the model version was deleted.
            ModelBeingDeleted: it is marked for deletion.
            Pinned: the build is automatic, and the current one is pinned.
            InFlight: the claim was lost.
            Unavailable: concurrent writes of the model's record kept interfering.
        """
        name = model.model_version
        build = Build(
            build_id=new_id(),
            model_version=name,
            status="queued",
            requested_at=timestamp(now()),
            parameters=parameters,
            automatic=automatic,
            generation=model.generation,
            request_id=telemetry.request_id(),
            trace=tracing.traceparent(),
        )
        free = same_model(model) & missing("open_build_id")
        if automatic:
            free &= differs("pinned", True)
        change = Update(set={"open_build_id": build.build_id})
        async for _ in CONFLICTS.attempts():
            try:
                await transactions.transact(
                    self._dynamo,
                    transactions.put(self._table, open_row(build), missing("build_id")),
                    self._model_update(name, change, free),
                    also=completion(claim, build),
                )
            except TransactionFailed:
                already = await self._already_open(model, parameters, automatic=automatic)
                if already is not None:
                    return already
            else:
                return build
        raise Unavailable(f"the build of {name} could not be opened; try again")

    async def beat(self, build: Build, progress: Progress) -> Build:
        """Renews the lease and writes the progress.

        Raises:
            LeaseLost: this worker no longer has the build.
        """
        written = {"progress": msgspec.json.encode(progress).decode()}
        return await self._beat(build, written)

    async def end(self, build: Build, status: str, error: str) -> None:
        """Ends a build that is not published, or a verification.

        Raises:
            LeaseLost: this worker no longer has the build.
        """
        ended = Update(
            set={"status": status, "ended_at": timestamp(now()), "error": error or None},
            remove=(tables.OPEN,),
        )
        try:
            await self._end(build, ended, ours(build))
        except ConditionFailed:
            raise self._lost(build.build_id) from None

    async def cancel(
        self, build_id: str, claim: Claim | None = None, *, verification: bool = False
    ) -> Build:
        """Ends an open build. Its worker notices at its next heartbeat.

        The fence is incremented, so that the worker that has claimed the build has lost it.

        Raises:
            NotFound: there is no such build, or it is a verification and `verification` is not set.
            BuildEnded: it has ended.
            InFlight: the claim was lost.
            Unavailable: it kept changing.
        """
        cancelled: Build | None = None
        async for _ in CONFLICTS.attempts():
            build = await self.get_build(build_id)
            if build.verifies is not None and not verification:
                raise NotFound(f"there is no build {build_id!r}")
            if cancelled and (build.fence, build.ended_at) == (cancelled.fence, cancelled.ended_at):
                return cancelled  # the response to the last try was lost
            if not build.open:
                raise BuildEnded(f"build {build_id} has ended: it is {build.status}")
            cancelled = msgspec.structs.replace(
                build,
                status="cancelled",
                fence=build.fence + 1,
                ended_at=timestamp(now()),
                error=None,
            )
            change = Update(
                set={
                    "status": cancelled.status,
                    "fence": cancelled.fence,
                    "ended_at": cancelled.ended_at,
                },
                remove=(tables.OPEN, "error"),
            )
            try:
                await self._end(build, change, still_open(build), completion(claim, cancelled))
            except ConditionFailed:
                continue  # it was claimed, or ended, since it was read
            return cancelled
        raise Unavailable(f"build {build_id} kept changing; try again")

    async def _end(
        self, build: Build, ended: Update, condition: Condition, also: Sequence[Part] = ()
    ) -> None:
        """Ends a build; if its model's record names it as the open one, that is cleared.

        Raises:
            ConditionFailed: the condition on the build was not met.
            InFlight: the idempotency claim in `also` was lost.
        """
        part = transactions.update(self._table, key(build_id=build.build_id), ended, condition)
        freed = self._model_update(
            build.model_version,
            Update(remove=("open_build_id",)),
            equals("open_build_id", build.build_id),
        )
        for parts in ((part, freed), (part,)):
            try:
                await transactions.transact(self._dynamo, *parts, also=also)
            except TransactionFailed as failed:
                if refused(failed, 0):
                    raise ConditionFailed from None
            else:
                return

    async def _already_open(
        self, before: Model, parameters: BuildParameters, *, automatic: bool
    ) -> Build | None:
        model = await read_model(self._dynamo, self._models, before.model_version)
        if model.generation != before.generation:
            raise NotFound(f"model version {model.model_version!r} was deleted")
        if model.deleting_at is not None:
            raise ModelBeingDeleted(model.model_version)
        if automatic and model.pinned:
            raise Pinned(f"build {model.current_build_id} of {model.model_version} is pinned")
        if model.open_build_id is None:
            return None
        build = await self.get_build(model.open_build_id)
        if automatic or not build.automatic or build.parameters != parameters:
            return build
        try:
            return await self._update(
                build.build_id, Update(set={"automatic": False}), still_open(build)
            )
        except LeaseLost:
            return None  # it was claimed or ended meanwhile: try again

    def _model_update(self, model_version: str, change: Update, condition: Condition) -> Part:
        return transactions.update(
            self._models, key(model_version=model_version), change, condition
        )
