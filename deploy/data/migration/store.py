"""Rows of older data into today's tables: what is newer there stays, and doing it twice is once."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.items import int_of
from core.dynamo.wire import Item, RequestItem
from core.errors import (
    Invalid,
    K9Error,
    MetricConflict,
    ModelBeingDeleted,
    RowError,
    Stale,
    Unavailable,
)
from core.models import Metric, Model, Report, User, next_version, now, timestamp
from core.repositories.embedding_rows import (
    generation_of,
    live_row,
    other_generation,
)
from core.repositories.models import ModelRepository
from core.repositories.reports import REPORT_CODEC
from core.repositories.transactions import CONFLICTS
from core.repositories.user_deletions import UserDeletionRepository
from core.repositories.users import USER_CODEC
from core.settings import Settings
from core.usecases.embeddings import EmbeddingService
from deploy.data.migration.conditional import put_over
from deploy.data.migration.timestamps import read_moment

Versioned = TypeVar("Versioned", User, Report)


class OldEmbedding(msgspec.Struct, frozen=True):
    """One embedding as older data has it."""

    product_id: str
    model_version: str
    vector: NDArray[np.float32]
    """float32 (d,); infinite where the data's number is too large for one."""


class Migration:
    """Puts rows of older data. Each row says when it changed, where its data does.

    What is wrong with one row, its model version or the row that is there is a RowError; any other
    error stops every row. Every `store_…` returns True when the row was put, and False when one is
    there already that is as new or newer: from an earlier run, or since. A row in the old layout (a
    list of numbers for a vector, no version) is replaced by its own equal.
    """

    def __init__(
        self,
        dynamo: Dynamo,
        settings: Settings,
        models: ModelRepository,
        deletions: UserDeletionRepository,
        embeddings: EmbeddingService,
    ) -> None:
        self._dynamo = dynamo
        self._settings = settings
        self._models = models
        self._embeddings = embeddings
        # The worker that removes a user looks on for reports for `deletion_settle_s` from the
        # mark, or longer. So a report that is written within that time of a look at the marks is
        # seen.
        self._settle_s = settings.records.deletion_settle_s
        self._marks = _Marks(deletions, self._settle_s / 5)

    async def store_user(self, user: User, changed_at: str | None) -> bool:
        """Stores a profile.

        Raises:
            RowError: it cannot be stored; the user is being deleted, or the table has a newer one
                in the old layout.
        """

        def item(there: Item | None) -> RequestItem:
            return USER_CODEC.encode(_raised(user, there))

        def check(there: Item) -> None:
            if "deleting_at" in there:
                raise Invalid("this user is being deleted")

        with _one_row():
            return await self._put(tables.USERS, item, _Judge(check, changed_at, "version"))

    async def store_report(self, report: Report, changed_at: str | None) -> bool:
        """Stores a report of whichever user it names.

        Raises:
            RowError: it cannot be stored; another user has a report of that id, its user is being
                deleted, or the table has a newer one in the old layout.
            Unavailable: DynamoDB did not take it in time.
        """
        if await self._marks.holds(report.user_id):
            raise RowError("its user is being deleted")

        def item(there: Item | None) -> RequestItem:
            return REPORT_CODEC.encode(_raised(report, there))

        def check(there: Item) -> None:
            if "user_id" not in there or there["user_id"].S != report.user_id:
                raise Invalid("another user has a report of this id")

        try:
            async with asyncio.timeout(self._settle_s / 2):
                with _one_row():
                    return await self._put(
                        tables.REPORTS, item, _Judge(check, changed_at, "version")
                    )
        except TimeoutError:
            raise Unavailable("DynamoDB did not take a report in time") from None

    async def store_embedding(
        self,
        old: OldEmbedding,
        created_at: str | None,
        metric: Metric | None,
        dimension: int | None = None,
    ) -> bool:
        """Stores an embedding; the first one of a model version makes its record.

        It counts as changed now, so that running indexes see it; `created_at` stays. `dimension`
        is that of a model version which there is none of yet; None: the embedding's own.

        Raises:
            RowError: it cannot be stored; the model version has another dimension or metric, or is
                being deleted.
        """

        async def attempt() -> bool:
            model = await self._model(old, metric, dimension)

            def item(_there: Item | None) -> RequestItem:
                moment = timestamp(now())
                row = live_row(model, old.product_id, old.vector.tobytes(), moment)
                return {**row, "created_at": {"S": created_at or moment}}

            def check(there: Item) -> None:
                if "model_shard" in there and generation_of(there) != model.generation:
                    raise other_generation(model)

            judge = _Judge(check, created_at, "model_shard")
            return await self._put(tables.EMBEDDINGS, item, judge)

        with _one_row():
            return await self._embeddings.in_one_generation(
                old.model_version, (old.product_id,), attempt
            )

    async def _model(
        self, old: OldEmbedding, metric: Metric | None, dimension: int | None
    ) -> Model:
        name = old.model_version
        model = await self._embeddings.find_model(name)
        self._check(old, model, metric, dimension)
        if model is None:
            model = await self._models.create_model(
                name, len(old.vector), metric or "cosine", self._settings.ingest.shards
            )
            self._check(old, model, metric)  # it may be another's, made just before
        return model

    def _check(
        self,
        old: OldEmbedding,
        model: Model | None,
        metric: Metric | None,
        dimension: int | None = None,
    ) -> None:
        found = self._embeddings.find_problems(
            [(old.product_id, old.vector)], model, metric, dimension
        )
        if found:
            raise Invalid("; ".join(f"{problem.field} {problem.message}" for problem in found))
        if model is not None and metric not in {None, model.metric}:
            raise MetricConflict(
                f"{model.model_version} was created with metric {model.metric}, which stays"
            )
        if model is not None and model.deleting_at is not None:
            raise ModelBeingDeleted(model.model_version)

    async def _put(
        self, table: tables.Table, item: Callable[[Item | None], RequestItem], judge: "_Judge"
    ) -> bool:
        name = self._settings.table(table.name)
        there: Item | None = None
        async for _ in CONFLICTS.attempts():
            met = await put_over(self._dynamo, name, table.key.partition, item(there), there)
            if met is None:
                return True
            there = met.item
            if there is not None and not judge.replaces(there):
                return False
        raise Stale("others kept writing the same row; migrate it again")


class _Judge(msgspec.Struct, frozen=True):
    """Whether a row of older data replaces the one that is there."""

    check: Callable[[Item], None]
    """Raises Invalid where it must not, however old the one there is."""
    changed_at: str | None
    layout: str
    """The attribute that tells today's layout."""

    def replaces(self, there: Item) -> bool:
        self.check(there)
        stored_at = _changed_at(there)
        if self.layout in there or "deleted_at" in there:
            if "deleted_at" in there or self.changed_at is None or stored_at is None:
                return False
            return self.changed_at > stored_at
        if self.changed_at and stored_at and stored_at > self.changed_at:
            raise Invalid(
                "the table has a newer one in the old layout; export it, and migrate that"
            )
        return True


class _Marks:
    """Who is being deleted, as of a moment ago."""

    def __init__(self, deletions: UserDeletionRepository, good_s: float) -> None:
        self._deletions = deletions
        self._good_s = good_s
        self._marked: frozenset[str] = frozenset()
        self._until = 0.0
        self._looking = asyncio.Lock()

    async def holds(self, user_id: str) -> bool:
        async with self._looking:
            if monotonic() >= self._until:
                asked = monotonic()
                self._marked = frozenset(await self._deletions.list_marked())
                self._until = asked + self._good_s
        return user_id in self._marked


def _raised(record: Versioned, there: Item | None) -> Versioned:
    """The record with a version above that of the row it replaces: an ETag names one state."""
    stored = there.get("version") if there else None
    if stored is None or stored.N is None:
        return record
    had = int_of(stored.N)
    version = record.version if record.version > had else next_version(had)
    return msgspec.structs.replace(record, version=version)


@contextmanager
def _one_row() -> Iterator[None]:
    """Raises: RowError: whatever is wrong with one row alone."""
    try:
        yield
    except Unavailable:
        raise
    except K9Error as error:
        raise RowError(str(error)) from error


def _changed_at(there: Item) -> str | None:
    """When the row that is there changed, or None where that cannot be read."""
    for name in ("created_at",) if "product_id" in there else ("updated_at", "created_at"):
        value = there.get(name)
        if value is None:
            continue
        try:
            text = value.S if value.S is not None else float(value.N or "")
            return read_moment(text)
        except ValueError:
            continue
    return None
