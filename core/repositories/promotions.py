"""Which published build is a model version's current one, and which are still kept.

Every move of `current_build_id` is a transaction over the build and the model's record, so that no
build becomes current that is not published, and none is removed that is current.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from core import names
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import (
    Update,
    differs,
    equals,
    exists,
    expressions,
    key,
    missing,
)
from core.errors import (
    ConditionFailed,
    LeaseLost,
    NotFound,
    NotPromotable,
    Pinned,
    TransactionFailed,
    Unavailable,
)
from core.models import Build, Model, Progress, now, timestamp
from core.repositories import transactions
from core.repositories.build_rows import ours
from core.repositories.builds import BuildRepository
from core.repositories.idempotency import lost
from core.repositories.models import ModelRepository, same_model
from core.repositories.transactions import CONFLICTS, Part, refused
from core.settings import Settings

_OPEN = "open_build_id"
_BUILD, _MODEL = 0, 1
"""Where the two rows stand in the transactions."""


class PromotionRepository:
    """What is current and what is kept, on the builds and models tables."""

    def __init__(
        self, dynamo: Dynamo, builds: BuildRepository, models: ModelRepository, settings: Settings
    ) -> None:
        self._dynamo = dynamo
        self._builds = builds
        self._models = models
        self._builds_table = settings.table(tables.BUILDS.name)
        self._models_table = settings.table(tables.MODELS.name)
        self._environment = settings.environment

    async def publish(self, build: Build, model: Model, manifest: dict[str, Any]) -> None:
        """Makes the build current: the build ends and the model's record moves, or neither.

        Raises:
            LeaseLost: the build is not this worker's any more, or the data was restored since.
            Pinned: an automatic build, and the current one was pinned meanwhile.
        """
        ended = Update(
            set={
                "status": "published",
                "ended_at": timestamp(now()),
                "manifest": msgspec.json.encode(manifest).decode(),
                "prefix": names.version_prefix(
                    self._environment, build.model_version, build.build_id, build.fence
                ),
                "progress": msgspec.json.encode(Progress("publish", 1, 1)).decode(),
            },
            remove=(tables.OPEN, "error"),
        )
        moved = Update(
            set={
                "current_build_id": build.build_id,
                "current_fence": build.fence,
                "pinned": False,
            },
            remove=(_OPEN,),
        )
        async for _ in CONFLICTS.attempts():
            # An operator may have made an automatic build their own since it was claimed.
            there = await self._builds.get_build(build.build_id)
            holds = equals(_OPEN, build.build_id) & equals("epoch", model.epoch)
            holds &= same_model(model)
            if there.automatic:
                holds &= differs("pinned", True)
            mine = ours(build) & differs("automatic", not there.automatic)
            try:
                await transactions.transact(
                    self._dynamo,
                    self._on_build(build.build_id, ended, mine),
                    self._on_model(build.model_version, moved, holds),
                )
            except TransactionFailed:
                if await self._published_after_all(build, there):
                    return
            else:
                return
        raise LeaseLost(f"build {build.build_id} kept changing while it was being published")

    async def promote(self, model_version: str, build_id: str, also: Sequence[Part] = ()) -> None:
        """Makes an earlier published build current, and pins it.

        Raises:
            NotFound: there is no such build of this model version.
            NotPromotable: it was not published, was removed, or is of another epoch.
            InFlight: the idempotency claim in `also` was lost.
            Unavailable: builds kept being opened and ended meanwhile.
        """
        async for _ in CONFLICTS.attempts():
            build, model = await self.promotable(model_version, build_id)
            moved = Update(
                set={"current_build_id": build_id, "current_fence": build.fence, "pinned": True}
            )
            under_way = model.open_build_id
            same = missing(_OPEN) if under_way is None else equals(_OPEN, under_way)
            kept = equals("status", "published") & missing("removed_at")
            try:
                await transactions.transact(
                    self._dynamo,
                    self._on_build(build_id, Update(remove=("retired_at",)), kept),
                    self._on_model(
                        model_version,
                        moved,
                        equals("epoch", model.epoch) & same_model(model) & same,
                    ),
                    *also,
                    *self._held_to_the_pin(under_way),
                )
            except TransactionFailed as failed:
                if refused(failed, _BUILD):
                    raise NotPromotable(
                        f"build {build_id} cannot be made current: it was removed just now"
                    ) from None
                if not refused(failed, _MODEL):
                    raise lost() from None
            else:
                return
        raise Unavailable(f"builds of {model_version} keep coming and going; try again")

    def _held_to_the_pin(self, build_id: str | None) -> list[Part]:
        """What was asked for before a promotion does not take it back when it is done.

        An operator who asks for it again makes it their own again.
        """
        if build_id is None:
            return []
        return [self._on_build(build_id, Update(set={"automatic": True}), exists("build_id"))]

    async def promotable(self, model_version: str, build_id: str) -> tuple[Build, Model]:
        """The build and its model version, where the one can be made current.

        Raises:
            NotFound: there is no such build of this model version.
            NotPromotable: it was not published, was removed, or is of another epoch.
        """
        model = await self._models.get_model(model_version)
        build = await self._builds.get_build(build_id)
        if build.model_version != model_version or build.verifies is not None:
            raise NotFound(f"{model_version} has no build {build_id!r}")
        if build.status != "published":
            raise NotPromotable(f"build {build_id} was not published: it is {build.status}")
        if build.removed_at is not None:
            raise NotPromotable(f"build {build_id} was removed at {build.removed_at}; build anew")
        if (build.generation, (build.manifest or {}).get("epoch")) != model.data:
            raise NotPromotable(
                f"build {build_id} is of data from before a restore; build {model_version} anew"
            )
        return build, model

    async def retire(self, build: Build) -> None:
        """Notes that no rule keeps a version any more; promoting it takes the note back.

        The current version, which may have been promoted just now, is not noted.
        """
        kept = equals("status", "published") & missing("removed_at") & missing("retired_at")
        try:
            await transactions.transact(
                self._dynamo,
                self._on_build(build.build_id, Update(set={"retired_at": timestamp(now())}), kept),
                self._not_current(build),
            )
        except TransactionFailed:
            return  # another worker was first, or it is in use again

    async def keep(self, build: Build) -> None:
        """Takes the note back: a rule keeps the version again."""
        if build.retired_at is None:
            return
        holds = missing("removed_at") & equals("retired_at", build.retired_at)
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._builds_table,
                Key=key(build_id=build.build_id),
                **expressions(update=Update(remove=("retired_at",)), condition=holds),
            )
        except ConditionFailed:
            return  # another worker was first, or it was promoted

    async def remove(self, build: Build) -> bool:
        """Marks a retired version as removed, before its files go; False where it is in use."""
        try:
            await transactions.transact(
                self._dynamo,
                self._on_build(
                    build.build_id,
                    Update(set={"removed_at": timestamp(now())}),
                    equals("retired_at", build.retired_at) & missing("removed_at"),
                ),
                self._not_current(build),
            )
        except TransactionFailed:
            return False
        return True

    async def _published_after_all(self, build: Build, seen: Build) -> bool:
        """After a refusal: True where this very call did it and its answer was lost on the way.

        False where another try may succeed.
        """
        there = await self._builds.get_build(build.build_id)
        if there.status == "published" and there.fence == build.fence:
            return True
        if there.fence != build.fence or not there.open:
            raise LeaseLost(f"build {build.build_id} has another owner now, or was cancelled")
        if there.automatic != seen.automatic:
            return False
        model = await self._models.get_model(build.model_version)
        if there.automatic and model.pinned:
            raise Pinned(
                f"build {model.current_build_id} is pinned: only a build that an operator asks for "
                "after that replaces it"
            )
        raise LeaseLost(
            f"the data of {build.model_version} was restored or made anew since the build began"
        )

    def _not_current(self, build: Build) -> Part:
        return transactions.check(
            self._models_table,
            key(model_version=build.model_version),
            differs("current_build_id", build.build_id),
        )

    def _on_build(self, build_id: str, change: Update, holds: Any) -> Part:
        return transactions.update(self._builds_table, key(build_id=build_id), change, holds)

    def _on_model(self, model_version: str, change: Update, holds: Any) -> Part:
        there = exists("model_version") & holds
        return transactions.update(
            self._models_table, key(model_version=model_version), change, there
        )
