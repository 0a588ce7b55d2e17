"""Stores rows of older data, never over a newer version of the same row; safe to run twice."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, equals, exists, expressions, missing
from core.dynamo.items import int_of
from core.dynamo.wire import Item, RequestItem
from core.errors import ConditionFailed, Invalid, K9Error, RowError, Stale, Unavailable
from core.models import Metric, Model, Report, User, next_version, now, timestamp
from core.repositories.embedding_rows import generation_of, live_row, other_generation
from core.repositories.reports import REPORT_CODEC
from core.repositories.transactions import CONFLICTS
from core.repositories.user_deletions import UserDeletionRepository
from core.repositories.users import USER_CODEC
from core.settings import Settings
from core.usecases.embeddings import EmbeddingService
from deploy.data.migration.timestamps import read_timestamp

Versioned = TypeVar("Versioned", User, Report)

_STATE_ATTRIBUTES: Final = (
    "user_id",
    "version",
    "created_at",
    "updated_at",
    "deleting_at",
    "deleted_at",
    "model_shard",
)
"""Each write of a row, of whichever table, changes at least one of these attributes."""


class LegacyEmbedding(msgspec.Struct, frozen=True):
    """One embedding of older data."""

    product_id: str
    model_version: str
    vector: NDArray[np.float32]
    """float32 (d,); infinite where the data's number is too large."""


class LegacyStore:
    """Stores rows of older data. Each has the time of its last change, if the data has that.

    A problem with one row, its model version or the existing row is a RowError; any other error
    concerns every row. Every `store_…` returns True when the row was stored, and False when the
    existing row is as new or newer. An existing row in the old layout (a list of numbers for a
    vector, no version) is replaced by the same row in today's.
    """

    def __init__(
        self,
        dynamo: Dynamo,
        settings: Settings,
        deletions: UserDeletionRepository,
        embeddings: EmbeddingService,
    ) -> None:
        self._dynamo = dynamo
        self._settings = settings
        self._embeddings = embeddings
        # The worker that deletes a user looks for its reports until at least `deletion_settle_s`
        # after the user was marked. So a report that is written within that time of reading the
        # marks is deleted too.
        self._settle_s = settings.records.deletion_settle_s
        self._deleting = _UsersBeingDeleted(deletions, self._settle_s / 5)

    async def store_user(self, user: User, changed_at: str | None) -> bool:
        """Stores a profile.

        Raises:
            RowError: it is not valid, the user is being deleted, or the existing row is newer and
                in the old layout.
        """

        def item(existing: Item | None) -> RequestItem:
            return USER_CODEC.encode(_with_next_version(user, existing))

        def check(existing: Item) -> None:
            if "deleting_at" in existing:
                raise Invalid("this user is being deleted")

        with _row_errors():
            rule = _Precedence(check, changed_at, "version")
            return await self._put(tables.USERS, item, rule)

    async def store_report(self, report: Report, changed_at: str | None) -> bool:
        """Stores a report of the user that it names.

        Raises:
            RowError: it is not valid, another user has a report of that id, its user is being
                deleted, or the existing row is newer and in the old layout.
            Unavailable: DynamoDB did not take it in time.
        """
        if await self._deleting.has(report.user_id):
            raise RowError("its user is being deleted")

        def item(existing: Item | None) -> RequestItem:
            return REPORT_CODEC.encode(_with_next_version(report, existing))

        def check(existing: Item) -> None:
            if "user_id" not in existing or existing["user_id"].S != report.user_id:
                raise Invalid("another user has a report of this id")

        rule = _Precedence(check, changed_at, "version")
        try:
            async with asyncio.timeout(self._settle_s / 2):
                with _row_errors():
                    return await self._put(tables.REPORTS, item, rule)
        except TimeoutError:
            raise Unavailable("DynamoDB did not take a report in time") from None

    async def store_embedding(
        self,
        legacy: LegacyEmbedding,
        created_at: str | None,
        metric: Metric | None,
        dimension: int | None = None,
    ) -> bool:
        """Stores an embedding; the first one of a model version creates its record.

        It counts as changed now, so that loaded indexes pick it up; `created_at` is kept.

        Args:
            legacy: The embedding.
            created_at: When it was created; None if the data does not say.
            metric: Of a new model version; cosine if None.
            dimension: Of a new model version; None: the embedding's own.

        Raises:
            RowError: it is not valid, or the model version has another dimension or metric, or is
                being deleted.
        """

        async def attempt() -> bool:
            model = await self._model(legacy, metric, dimension)

            def item(_existing: Item | None) -> RequestItem:
                moment = timestamp(now())
                row = live_row(model, legacy.product_id, legacy.vector.tobytes(), moment)
                return {**row, "created_at": {"S": created_at or moment}}

            def check(existing: Item) -> None:
                if "model_shard" in existing and generation_of(existing) != model.generation:
                    raise other_generation(model)

            rule = _Precedence(check, created_at, "model_shard")
            return await self._put(tables.EMBEDDINGS, item, rule)

        with _row_errors():
            return await self._embeddings.in_one_generation(
                legacy.model_version, (legacy.product_id,), attempt
            )

    async def _model(
        self, legacy: LegacyEmbedding, metric: Metric | None, dimension: int | None
    ) -> Model:
        name = legacy.model_version
        model = await self._embeddings.find_model(name)
        row = (legacy.product_id, legacy.vector)
        problems = self._embeddings.find_problems([row], model, metric, dimension)
        if problems:
            raise Invalid("; ".join(f"{each.field} {each.message}" for each in problems[0]))
        return await self._embeddings.model_for(model, name, len(legacy.vector), metric)

    async def _put(
        self, table: tables.Table, item: Callable[[Item | None], RequestItem], rule: "_Precedence"
    ) -> bool:
        name, key = self._settings.table(table.name), table.key.partition
        existing: Item | None = None
        async for _ in CONFLICTS.attempts():
            try:
                await self._dynamo.call(
                    "put_item",
                    TableName=name,
                    Item=item(existing),
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                    **expressions(condition=_unchanged(key, existing)),
                )
            except ConditionFailed as failed:
                existing = failed.item
            else:
                return True
            if existing is not None and not rule.replaces(existing):
                return False
        raise Stale("the row was changed concurrently; migrate it again")


def _unchanged(key: str, existing: Item | None) -> Condition:
    """The condition that a row is as it was read; None: that there is none."""
    if existing is None:
        return missing(key)
    condition = exists(key)
    for name in _STATE_ATTRIBUTES:
        condition &= equals(name, existing[name]) if name in existing else missing(name)
    return condition


class _Precedence(msgspec.Struct, frozen=True):
    """Decides whether a row of older data replaces the existing one."""

    check: Callable[[Item], None]
    """Raises Invalid where the existing row must stay, however old it is."""
    changed_at: str | None
    """Of the older data's row."""
    layout: str
    """The attribute that only rows in today's layout have."""

    def replaces(self, existing: Item) -> bool:
        self.check(existing)
        stored_at = _changed_at(existing)
        if self.layout in existing or "deleted_at" in existing:
            if "deleted_at" in existing or self.changed_at is None or stored_at is None:
                return False
            return self.changed_at > stored_at
        if self.changed_at and stored_at and stored_at > self.changed_at:
            raise Invalid("the table has a newer row in the old layout; export and migrate that")
        return True


class _UsersBeingDeleted:
    """The users that are marked for deletion, read again after `max_age_s`."""

    def __init__(self, deletions: UserDeletionRepository, max_age_s: float) -> None:
        self._deletions = deletions
        self._max_age_s = max_age_s
        self._user_ids: frozenset[str] = frozenset()
        self._expires = 0.0
        self._reading = asyncio.Lock()

    async def has(self, user_id: str) -> bool:
        async with self._reading:
            if monotonic() >= self._expires:
                began = monotonic()
                self._user_ids = frozenset(await self._deletions.list_marked())
                self._expires = began + self._max_age_s
        return user_id in self._user_ids


def _with_next_version(record: Versioned, existing: Item | None) -> Versioned:
    """The record with a higher version than the row it replaces: an ETag stands for one state."""
    stored = existing.get("version") if existing else None
    if stored is None or stored.N is None:
        return record
    previous = int_of(stored.N)
    version = record.version if record.version > previous else next_version(previous)
    return msgspec.structs.replace(record, version=version)


@contextmanager
def _row_errors() -> Iterator[None]:
    """Raises: RowError: for errors that concern one row alone."""
    try:
        yield
    except Unavailable:
        raise
    except K9Error as error:
        raise RowError(str(error)) from error


def _changed_at(row: Item) -> str | None:
    """When an existing row was changed; None if that cannot be read."""
    for name in ("created_at",) if "product_id" in row else ("updated_at", "created_at"):
        value = row.get(name)
        if value is None:
            continue
        try:
            return read_timestamp(value.S if value.S is not None else float(value.N or ""))
        except ValueError:
            continue
    return None
