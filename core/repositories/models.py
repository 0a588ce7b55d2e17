"""Model versions: what their first write fixed, and which build is current."""

import time
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Final

import msgspec

from core import telemetry
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, exists, key, missing
from core.dynamo.items import Codec, check_row, int_of
from core.dynamo.pagination import paginate
from core.dynamo.rows import get_row, put_row, update_row
from core.dynamo.wire import AttributeValue, RequestItem
from core.errors import (
    Corrupt,
    ModelBeingDeleted,
    NewerFormat,
    NotFound,
    OtherGeneration,
    TransactionFailed,
)
from core.formats import TABLES_ROW
from core.models import Metric, Model, now, timestamp
from core.repositories import transactions
from core.repositories.embedding_rows import of_generation
from core.repositories.transactions import Part
from core.settings import Settings

MODEL_CODEC = Codec(Model)

_TABLES: Final = "the tables' data"
_log = telemetry.logger(__name__)

_SHARDS: Final = "shards"
_OWN_SHARDS: Final = "generation_shards"
"""The attribute with the number of shards of a record with a generation.

Releases up to 23e14f8 find 0 under `shards`: they would write rows to partitions of generation 0,
which nothing reads, and so fail before they write. Their processes may run until an upgrade is
done.
"""


def encode_model(model: Model) -> RequestItem:
    """The item of a model version's record."""
    item = MODEL_CODEC.encode(model)
    if model.generation:
        item[_OWN_SHARDS] = item[_SHARDS]
        item[_SHARDS] = {"N": "0"}
    return item


def decode_model(item: Mapping[str, AttributeValue]) -> Model:
    """The inverse of `encode_model`.

    Raises:
        Corrupt: it cannot be read.
    """
    model = MODEL_CODEC.decode(item)
    if not model.generation:
        return model
    own = item.get(_OWN_SHARDS)
    if own is None or own.N is None:
        raise Corrupt(f"attribute {_OWN_SHARDS} of a row is missing")
    return msgspec.structs.replace(model, shards=int_of(own.N))


async def read_model(dynamo: Dynamo, table: str, model_version: str) -> Model:
    """A model version's record, read consistently.

    Raises:
        NotFound: there is none.
    """
    item = await get_row(dynamo, table, key(model_version=model_version))
    if item is None:
        raise NotFound(f"there is no model version {model_version!r}")
    return decode_model(item)


def same_model(model: Model) -> Condition:
    """The record is of this generation, and not marked for deletion."""
    return exists("model_version") & missing("deleting_at") & of_generation(model.generation)


class ModelRepository:
    """The models table. Only `find_model` and `list_models` return what is marked for deletion."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.MODELS.name)
        self._cache_s = settings.ingest.model_cache_s
        self._batch_s = settings.ingest.batch_deadline_s
        self._cache: dict[str, tuple[float, Model]] = {}
        self._read_at: dict[str, tuple[int, float]] = {}
        """Model version → generation, and when the last read began that found it unmarked."""
        self.refused: dict[str, str] = {}
        """Model versions that a later release wrote → what was found, as last listed."""

    async def find_model(self, model_version: str) -> Model:
        """The present model version, also one marked for deletion.

        Raises:
            NotFound: there is none.
        """
        began = monotonic()
        try:
            model = await read_model(self._dynamo, self._table, model_version)
        except NotFound:
            self.forget(model_version)
            raise
        return self._remember(model, began)

    async def get_model(self, model_version: str) -> Model:
        """The present model version.

        Raises:
            NotFound: there is none.
            ModelBeingDeleted: it is marked for deletion.
        """
        model = await self.find_model(model_version)
        if model.deleting_at is not None:
            raise ModelBeingDeleted(model_version)
        return model

    async def known_model(self, model_version: str) -> Model:
        """The model version, at most a few seconds old.

        For what its first write fixed: dimension, metric, shards.

        Raises:
            NotFound: there is none.
            ModelBeingDeleted: it is marked for deletion.
        """
        cached = self._cache.get(model_version)
        if cached is not None and cached[0] > monotonic():
            return cached[1]
        return await self.get_model(model_version)

    def forget(self, model_version: str) -> None:
        """Drops the model version from the cache."""
        self._cache.pop(model_version, None)

    def batch_until(self, model: Model) -> float:
        """The time (`time.monotonic`) until which rows may be written without a condition.

        It counts from the read that found the record unmarked. A worker that removes the rows
        waits that long after the mark, and for requests that are on their way: so none of these
        writes can arrive in a later model version of the same name.
        """
        generation, read_at = self._read_at.get(model.model_version, (model.generation, 0.0))
        if generation != model.generation:
            return 0.0
        return read_at + self._cache_s + self._batch_s

    async def list_models(self) -> list[Model]:
        """Every model version, by name, those that are being deleted too.

        Those that a later release wrote are left out, and are in `refused`.

        Raises:
            NewerFormat: a later release has changed all tables.
        """
        models: list[Model] = []
        refused: dict[str, str] = {}
        async for items in paginate(self._dynamo.call, "scan", TableName=self._table):
            for item in items:
                name = item["model_version"].S or ""
                if name == TABLES_ROW:
                    check_row(item, _TABLES)
                    continue
                try:
                    models.append(decode_model(item))
                except NewerFormat as error:
                    refused[name] = str(error)
        for name in refused.keys() - self.refused.keys():
            _log.error("model version refused", model_version=name, reason=refused[name])
        self.refused = refused
        listed = {model.model_version: model for model in models}
        for name, (_, cached) in list(self._cache.items()):
            model = listed.get(name)
            if model is None or model.deleting_at or model.generation != cached.generation:
                self.forget(name)
        return sorted(models, key=lambda model: model.model_version)

    async def check_tables(self) -> None:
        """Checks that this release may work on the tables.

        Raises:
            NewerFormat: a later release has changed them.
        """
        item = await get_row(self._dynamo, self._table, key(model_version=TABLES_ROW))
        check_row(item or {}, _TABLES)

    async def create_model(
        self, model_version: str, dimension: int, metric: Metric, shards: int
    ) -> Model:
        """The model version, made now unless another write was first; then that one's.

        Raises:
            ModelBeingDeleted: there is one, marked for deletion.
        """
        began = monotonic()
        model = Model(
            model_version=model_version,
            dimension=dimension,
            metric=metric,
            shards=shards,
            created_at=timestamp(now()),
            generation=time.time_ns() // 1000,
        )
        absent = missing("model_version")
        if not await put_row(self._dynamo, self._table, encode_model(model), absent):
            return await self.get_model(model_version)
        return self._remember(model, began)

    async def note_attributes(self, model: Model) -> Model:
        """The model version, noted to have attributes: before the first of them is written.

        Raises:
            NotFound: it is gone.
            ModelBeingDeleted: it is marked for deletion.
            OtherGeneration: there is a later one of its name.
        """
        if model.has_attributes:
            return model
        began = monotonic()
        where, noted = key(model_version=model.model_version), Update(set={"has_attributes": True})
        if await update_row(self._dynamo, self._table, where, noted, same_model(model)):
            return self._remember(msgspec.structs.replace(model, has_attributes=True), began)
        self.forget(model.model_version)
        await self.get_model(model.model_version)
        raise OtherGeneration(f"there is a later model version {model.model_version}")

    async def set_internal_attributes(
        self, model: Model, names: Sequence[str], also: Sequence[Part] = ()
    ) -> None:
        """Sets which attributes readers alone may ask by or get, whatever was set before.

        `also` is what else belongs to the transaction.

        Raises:
            NotFound: the model version is gone; there may be a later one of its name.
            ModelBeingDeleted: it is marked for deletion.
            InFlight: the idempotency claim in `also` was lost.
        """
        change = Update(set={"internal_attributes": list(names)})
        await self._change(model, change, also, lambda _: False)

    async def mark_model(self, marked: Model, also: Sequence[Part] = ()) -> None:
        """Marks a model version for deletion, at its `deleting_at`.

        `also` is what else belongs to the transaction.

        Raises:
            NotFound: it is gone; there may be a later one of its name.
            ModelBeingDeleted: it is marked already.
            InFlight: the idempotency claim in `also` was lost.
        """
        self.forget(marked.model_version)
        change = Update(set={"deleting_at": marked.deleting_at})
        await self._change(
            marked, change, also, lambda there: there.deleting_at == marked.deleting_at
        )

    async def _change(
        self, model: Model, change: Update, also: Sequence[Part], is_done: Callable[[Model], bool]
    ) -> None:
        """Changes a record that is not marked; `is_done` knows a change whose reply was lost."""
        name = model.model_version
        part = transactions.update(self._table, key(model_version=name), change, same_model(model))
        try:
            await transactions.transact(self._dynamo, part, also=also)
        except TransactionFailed as failed:
            item = failed.items[0]
            there = None if item is None else decode_model(item)
            if there is None or there.generation != model.generation:
                raise NotFound(f"there is no model version {name!r} any more") from None
            if not is_done(there):
                raise ModelBeingDeleted(name) from None
        finally:
            self.forget(name)

    def _remember(self, model: Model, began: float) -> Model:
        if model.deleting_at is None:
            self._cache[model.model_version] = (began + self._cache_s, model)
            self._read_at[model.model_version] = (model.generation, began)
        else:
            self.forget(model.model_version)
        return model
