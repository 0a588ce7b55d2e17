"""Verifications: rows of the builds table that make a build's files again and publish nothing.

They are claimed, leased and ended by `BuildRepository`, like the builds that they look like.
"""

from typing import Any

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, expressions, key
from core.errors import ConditionFailed, LeaseLost
from core.models import Build, now, timestamp
from core.repositories.build_rows import new_build_id, open_row, ours
from core.settings import Settings


class Difference(msgspec.Struct, frozen=True):
    """A file that was made with other bytes."""

    name: str
    sha256: str
    """As the manifest has it."""
    made: str
    """As it was made now."""


class Verification(msgspec.Struct, frozen=True):
    """What a verification found."""

    build_id: str
    model_version: str
    compared: tuple[str, ...]
    """Names of the files whose bytes were compared."""
    differences: tuple[Difference, ...]
    rows_changed: int
    """Rows written or deleted since the build read them."""


class VerificationRepository:
    """Opens verifications, and ends those that could be done."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.BUILDS.name)

    async def open(self, build: Build) -> Build:
        """Writes a verification of a published build, for a worker to take."""
        verification = Build(
            build_id=new_build_id(),
            model_version=build.model_version,
            status="queued",
            requested_at=timestamp(now()),
            parameters=build.parameters,
            verifies=build.build_id,
            generation=build.generation,
        )
        await self._dynamo.call("put_item", TableName=self._table, Item=open_row(verification))
        return verification

    async def finish(self, build: Build, found: Verification) -> None:
        """Ends a verification with what it found, which its row keeps as its manifest.

        Raises:
            LeaseLost: the verification is not this worker's any more.
        """
        change = Update(
            set={
                "status": "verified",
                "ended_at": timestamp(now()),
                "manifest": msgspec.json.encode(found).decode(),
            },
            remove=(tables.OPEN, "error"),
        )
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._table,
                Key=key(build_id=build.build_id),
                **expressions(update=change, condition=ours(build)),
            )
        except ConditionFailed:
            raise LeaseLost(f"verification {build.build_id} has another owner now") from None


def found_in(build: Build) -> Verification | None:
    """What a verification found; None where it has not come to that."""
    if build.status != "verified":
        return None
    manifest: Any = build.manifest
    return msgspec.convert(manifest, Verification)
