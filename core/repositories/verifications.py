"""Verifications: rows of the builds table whose workers build files again and publish nothing.

`BuildRepository` claims, leases and ends them like builds.
"""

from typing import Any

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, key
from core.dynamo.rows import update_row
from core.errors import LeaseLost
from core.models import Build, now, timestamp
from core.repositories.build_rows import open_row
from core.repositories.leased_rows import new_id, ours
from core.settings import Settings


class Difference(msgspec.Struct, frozen=True):
    """A file whose bytes differ."""

    name: str
    sha256: str
    """In the manifest."""
    made: str
    """As built now."""


class Verification(msgspec.Struct, frozen=True):
    """The result of a verification."""

    build_id: str
    model_version: str
    compared: tuple[str, ...]
    """Names of the files whose bytes were compared."""
    differences: tuple[Difference, ...]
    rows_changed: int
    """Rows and attributes written or deleted since the build read them."""


class VerificationRepository:
    """Opens verifications, and ends those that have a result."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.BUILDS.name)

    async def open(self, build: Build) -> Build:
        """Writes a verification of a published build, for a worker to claim."""
        verification = Build(
            build_id=new_id(),
            model_version=build.model_version,
            status="queued",
            requested_at=timestamp(now()),
            parameters=build.parameters,
            verifies=build.build_id,
            generation=build.generation,
        )
        await self._dynamo.call("put_item", TableName=self._table, Item=open_row(verification))
        return verification

    async def finish(self, build: Build, result: Verification) -> None:
        """Ends a verification with its result, which its row stores as its manifest.

        Raises:
            LeaseLost: this worker no longer has the verification.
        """
        change = Update(
            set={
                "status": "verified",
                "ended_at": timestamp(now()),
                "manifest": msgspec.json.encode(result).decode(),
            },
            remove=(tables.OPEN, "error"),
        )
        where = key(build_id=build.build_id)
        if not await update_row(self._dynamo, self._table, where, change, ours(build)):
            raise LeaseLost(f"another worker has verification {build.build_id}")


def result_of(build: Build) -> Verification | None:
    """The result of a verification; None if it has none."""
    if build.status != "verified":
        return None
    manifest: Any = build.manifest
    return msgspec.convert(manifest, Verification)
