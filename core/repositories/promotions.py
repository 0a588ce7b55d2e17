"""Which published build of a model version is the current one, and which are retired or removed.

Every change of `current_build_id` is a transaction over the build and the model's record, so that
only a published build becomes current, and a current one is not removed.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from core import names
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, differs, equals, exists, key, missing
from core.dynamo.rows import update_row
from core.errors import LeaseLost, NotFound, NotPromotable, Pinned, TransactionFailed, Unavailable
from core.models import Build, Model, Progress, now, timestamp
from core.repositories import transactions
from core.repositories.builds import BuildRepository
from core.repositories.leased_rows import ours
from core.repositories.models import ModelRepository, same_model
from core.repositories.transactions import CONFLICTS, Part, refused
from core.settings import Settings

_OPEN = "open_build_id"


class PromotionRepository:
    """Current, retired and removed builds, in the builds and models tables."""

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
        """Ends the build as published and makes it current, in one transaction.

        Raises:
            LeaseLost: this worker no longer has the build, or the data was restored meanwhile.
            Pinned: the build is automatic, and the current one was pinned meanwhile.
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
            set={"current_build_id": build.build_id, "current_fence": build.fence, "pinned": False},
            remove=(_OPEN,),
        )
        async for _ in CONFLICTS.attempts():
            # An operator may have requested the same since an automatic build was claimed.
            build_now = await self._builds.get_build(build.build_id)
            condition = equals(_OPEN, build.build_id) & equals("epoch", model.epoch)
            condition &= same_model(model)
            if build_now.automatic:
                condition &= differs("pinned", True)
            mine = ours(build) & differs("automatic", not build_now.automatic)
            try:
                await transactions.transact(
                    self._dynamo,
                    self._on_build(build.build_id, ended, mine),
                    self._on_model(build.model_version, moved, condition),
                )
            except TransactionFailed:
                if await self._is_published(build, build_now):
                    return
            else:
                return
        raise LeaseLost(f"build {build.build_id} kept changing while it was published")

    async def promote(self, model_version: str, build_id: str, also: Sequence[Part] = ()) -> None:
        """Makes an earlier published build current, and pins it.

        Raises:
            NotFound: there is no such build of this model version.
            NotPromotable: it was not published, was removed, or is of another epoch.
            InFlight: the idempotency claim in `also` was lost.
            Unavailable: concurrent builds kept interfering.
        """
        async for _ in CONFLICTS.attempts():
            build, model = await self.promotable(model_version, build_id)
            moved = Update(
                set={"current_build_id": build_id, "current_fence": build.fence, "pinned": True}
            )
            open_build = model.open_build_id
            same = missing(_OPEN) if open_build is None else equals(_OPEN, open_build)
            kept = equals("status", "published") & missing("removed_at")
            condition = equals("epoch", model.epoch) & same_model(model) & same
            parts = [
                self._on_build(build_id, Update(remove=("retired_at",)), kept),
                self._on_model(model_version, moved, condition),
            ]
            if open_build is not None:
                # It must not replace the promoted build, unless an operator requests it again.
                automatic = Update(set={"automatic": True})
                parts.append(self._on_build(open_build, automatic, exists("build_id")))
            try:
                await transactions.transact(self._dynamo, *parts, also=also)
            except TransactionFailed as failed:
                if refused(failed, 0):
                    raise NotPromotable(
                        f"build {build_id} cannot be made current: it was removed just now"
                    ) from None
            else:
                return
        raise Unavailable(f"concurrent builds of {model_version} kept interfering; try again")

    async def promotable(self, model_version: str, build_id: str) -> tuple[Build, Model]:
        """The build and its model version, if the build can be made current.

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
            raise NotPromotable(
                f"build {build_id} was removed at {build.removed_at}; request a new build"
            )
        if (build.generation, (build.manifest or {}).get("epoch")) != model.data:
            raise NotPromotable(
                f"build {build_id} is of data from before a restore; request a new build"
            )
        return build, model

    async def retire(self, build: Build) -> None:
        """Marks a version that no rule keeps as retired, unless it is the current one."""
        kept = equals("status", "published") & missing("removed_at") & missing("retired_at")
        await self._update_unless_current(build, Update(set={"retired_at": timestamp(now())}), kept)

    async def keep(self, build: Build) -> None:
        """Clears the mark of a retired version: a rule keeps it again."""
        if build.retired_at is None:
            return
        condition = missing("removed_at") & equals("retired_at", build.retired_at)
        where, change = key(build_id=build.build_id), Update(remove=("retired_at",))
        await update_row(self._dynamo, self._builds_table, where, change, condition)

    async def remove(self, build: Build) -> bool:
        """Marks a retired version as removed, before its files are; False if it is in use again."""
        retired = equals("retired_at", build.retired_at) & missing("removed_at")
        change = Update(set={"removed_at": timestamp(now())})
        return await self._update_unless_current(build, change, retired)

    async def _is_published(self, build: Build, seen: Build) -> bool:
        """After a failed transaction: True if an earlier try of this call succeeded.

        False if another try may succeed.

        Raises:
            LeaseLost: this worker no longer has the build, or the data was restored meanwhile.
            Pinned: the build is automatic, and the current one was pinned meanwhile.
        """
        found = await self._builds.get_build(build.build_id)
        if found.status == "published" and found.fence == build.fence:
            return True
        if found.fence != build.fence or not found.open:
            raise LeaseLost(f"another worker has build {build.build_id}, or it was cancelled")
        if found.automatic != seen.automatic:
            return False
        model = await self._models.get_model(build.model_version)
        if found.automatic and model.pinned:
            raise Pinned(
                f"build {model.current_build_id} is pinned: only a build that an operator requests "
                "after the promotion replaces it"
            )
        raise LeaseLost(
            f"the data of {build.model_version} was restored or replaced since the build began"
        )

    async def _update_unless_current(
        self, build: Build, change: Update, condition: Condition
    ) -> bool:
        """Updates a build; False if it is current, or its condition is not met."""
        not_current = differs("current_build_id", build.build_id)
        model_key = key(model_version=build.model_version)
        try:
            await transactions.transact(
                self._dynamo,
                self._on_build(build.build_id, change, condition),
                transactions.check(self._models_table, model_key, not_current),
            )
        except TransactionFailed:
            return False
        return True

    def _on_build(self, build_id: str, change: Update, condition: Condition) -> Part:
        return transactions.update(self._builds_table, key(build_id=build_id), change, condition)

    def _on_model(self, model_version: str, change: Update, condition: Condition) -> Part:
        return transactions.update(
            self._models_table,
            key(model_version=model_version),
            change,
            exists("model_version") & condition,
        )
