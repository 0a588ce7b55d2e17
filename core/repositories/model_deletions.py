"""The deletion of a model version: which worker has it, by a lease, and what it removes.

What is removed is removed on a condition of its own (the generation of a row, the model version of
a build, the mark of the record). So a worker that lost its lease without knowing it changes nothing
of a later model version; the lease only spares the work of doing it twice.
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

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
from core.errors import ConditionFailed, LeaseLost
from core.models import Build, Model
from core.repositories.build_rows import milliseconds
from core.repositories.embeddings import EmbeddingRepository
from core.settings import Settings

_HOLDER = "deletion_holder"
_LEASE = "deletion_lease_until_ms"


class Claim(msgspec.Struct, frozen=True):
    """One worker's right to remove a model version."""

    model: Model
    """As it was marked."""
    holder: str


class ModelDeletionRepository:
    """The marked records of the models table, and what is removed with them."""

    def __init__(self, dynamo: Dynamo, embeddings: EmbeddingRepository, settings: Settings) -> None:
        self._dynamo = dynamo
        self._embeddings = embeddings
        self._models = settings.table(tables.MODELS.name)
        self._builds = settings.table(tables.BUILDS.name)
        self._lease_s = settings.building.lease_s

    async def claim(self, model: Model) -> Claim | None:
        """Takes the deletion of a model version; None where it is not marked, or another's."""
        if model.deleting_at is None:
            return None
        claim = Claim(model, secrets.token_hex(8))
        free = missing(_LEASE) | below(_LEASE, milliseconds(0)) | equals(_HOLDER, claim.holder)
        return claim if await self._lease(claim, _marked(model) & free) else None

    async def renew(self, claim: Claim) -> None:
        """Renews the lease.

        Raises:
            LeaseLost: another worker has the deletion, or it is done.
        """
        if not await self._lease(claim, _ours(claim)):
            raise LeaseLost(f"the deletion of {claim.model.model_version} has another owner now")

    async def release(self, claim: Claim) -> None:
        """Lets another worker have it at once."""
        await self._lease(claim, _ours(claim), 0)

    async def remove_rows(self, claim: Claim) -> AsyncGenerator[int, None]:
        """Removes the rows and tombstones that the index shows, a page at a time.

        Yields how many rows each page had, removed by now or before.

        Raises:
            Unavailable: DynamoDB did not do its part; the rest is left for another time.
        """
        pages = self._embeddings.get_embeddings_by_model(claim.model, vectors=False)
        async with aclosing(pages):
            async for page in pages:
                await self._embeddings.remove_rows(page)
                yield len(page)

    async def remove_build(self, build: Build) -> None:
        """Removes the record of a build, or of a verification, that has ended."""
        holds = missing(tables.OPEN) & equals("fence", build.fence)
        await self._remove(self._builds, build.build_id, holds)

    async def remove_model(self, claim: Claim) -> bool:
        """Removes the record itself; False where a build was opened meanwhile.

        Raises:
            LeaseLost: another worker has the deletion, or has done it.
        """
        try:
            await self._dynamo.call(
                "delete_item",
                TableName=self._models,
                Key=key(model_version=claim.model.model_version),
                **expressions(condition=_ours(claim) & missing("open_build_id")),
            )
        except ConditionFailed:
            await self.renew(claim)
            return False
        return True

    async def _remove(self, table: str, build_id: str, holds: Condition) -> None:
        try:
            await self._dynamo.call(
                "delete_item",
                TableName=table,
                Key=key(build_id=build_id),
                **expressions(condition=holds),
            )
        except ConditionFailed:
            return  # it is gone, or is met again

    async def _lease(self, claim: Claim, holds: Condition, lease_s: float | None = None) -> bool:
        until_ms = milliseconds(self._lease_s if lease_s is None else lease_s)
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._models,
                Key=key(model_version=claim.model.model_version),
                **expressions(
                    update=Update(set={_HOLDER: claim.holder, _LEASE: until_ms}), condition=holds
                ),
            )
        except ConditionFailed:
            return False
        return True


def _marked(model: Model) -> Condition:
    """The record still has the very mark."""
    generation = (
        equals("generation", model.generation) if model.generation else missing("generation")
    )
    return exists("model_version") & equals("deleting_at", model.deleting_at) & generation


def _ours(claim: Claim) -> Condition:
    return _marked(claim.model) & equals(_HOLDER, claim.holder)
