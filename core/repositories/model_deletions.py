"""Deletions of model versions: which worker has the lease of one, and the records it removes.

Every removal has a condition of its own (the fence of a build, the mark of the record, the
generation of a row), so that a worker that lost its lease unawares changes nothing of a later model
version; the lease only saves two workers from doing the same.
"""

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, equals, key, missing
from core.dynamo.rows import delete_row, update_row
from core.errors import LeaseLost
from core.models import Build, Model
from core.repositories.deletion_leases import DeletionLease
from core.repositories.embedding_rows import of_generation
from core.settings import Settings


class ModelDeletion(msgspec.Struct, frozen=True):
    """One worker's claim to delete a model version."""

    model: Model
    """As it was marked."""
    lease: DeletionLease

    @property
    def held(self) -> Condition:
        """The record is still of this generation, and this worker has its lease."""
        return of_generation(self.model.generation) & self.lease.held


class ModelDeletionRepository:
    """Marks and leases in the models table, and the records removed with them."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._models = settings.table(tables.MODELS.name)
        self._builds = settings.table(tables.BUILDS.name)
        self._lease_s = settings.building.lease_s

    async def claim(self, model: Model) -> ModelDeletion | None:
        """Takes the deletion of a model version; None if it is not marked, or another's."""
        if model.deleting_at is None:
            return None
        lease = DeletionLease(model.deleting_at)
        condition = of_generation(model.generation) & lease.available
        taken = await self._update(model, lease.renewed(self._lease_s), condition)
        return ModelDeletion(model, lease) if taken else None

    async def renew(self, deletion: ModelDeletion) -> None:
        """Renews the lease.

        Raises:
            LeaseLost: another worker has the deletion, or it is finished.
        """
        change = deletion.lease.renewed(self._lease_s)
        if not await self._update(deletion.model, change, deletion.held):
            name = deletion.model.model_version
            raise LeaseLost(f"another worker has the deletion of {name}, or has finished it")

    async def release(self, deletion: ModelDeletion) -> None:
        """Ends the lease, so that any worker may continue at once."""
        await self._update(deletion.model, deletion.lease.released, deletion.held)

    async def remove_build(self, build: Build) -> None:
        """Removes the record of a build or verification, if it has ended."""
        ended = missing(tables.OPEN) & equals("fence", build.fence)
        await delete_row(self._dynamo, self._builds, key(build_id=build.build_id), ended)

    async def remove_model(self, deletion: ModelDeletion) -> bool:
        """Removes the record itself; False if a build was opened meanwhile.

        Raises:
            LeaseLost: another worker has the deletion, or has finished it.
        """
        where = key(model_version=deletion.model.model_version)
        condition = deletion.held & missing("open_build_id")
        if await delete_row(self._dynamo, self._models, where, condition):
            return True
        await self.renew(deletion)
        return False

    async def _update(self, model: Model, change: Update, condition: Condition) -> bool:
        where = key(model_version=model.model_version)
        return await update_row(self._dynamo, self._models, where, change, condition)
