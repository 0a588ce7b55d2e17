"""Attributes as stored: what is there, and clients that watch or disturb a write."""

import math
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from core.attributes.values import Attributes
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.models import Model
from core.repositories.attributes import AttributeRepository
from core.repositories.embeddings import EmbeddingRepository
from core.repositories.idempotency import Claim, IdempotencyRepository
from core.repositories.models import ModelRepository
from core.settings import Settings
from core.usecases.embeddings import EmbeddingService
from tests.unit.api.serving.fakes import FakeNotifier


async def claimed(dynamo: Dynamo, settings: Settings) -> Claim:
    """A claim on an idempotency key of its own."""
    claim = await IdempotencyRepository(dynamo, settings).begin(uuid4().hex, "key", "f")
    assert isinstance(claim, Claim)
    return claim


async def found(embeddings: EmbeddingRepository, model: Model, product_id: str) -> Attributes:
    """The attributes of a product, as both of the ways to read them give them."""
    row = await embeddings.get_embedding(model.model_version, product_id, model.generation)
    listed, _ = await embeddings.list_embeddings(model, limit=100)
    (same,) = [each for each in listed if each.product_id == product_id]
    assert same == row
    return row.attributes or {}


async def items_of(dynamo: Dynamo, settings: Settings, model: Model) -> list[dict[str, Any]]:
    """Every item of a model version that the embeddings table has, of any kind."""
    reply = await dynamo.call(
        "scan", TableName=settings.table(tables.EMBEDDINGS.name), ConsistentRead=True
    )
    name = model.model_version
    return [each for each in reply["Items"] if (each["model_version"].S or "").startswith(name)]


def service_of(dynamo: Dynamo, settings: Settings, models: ModelRepository) -> EmbeddingService:
    """The operations of a process on embeddings."""
    return EmbeddingService(
        models,
        EmbeddingRepository(dynamo, settings),
        AttributeRepository(dynamo, settings),
        FakeNotifier(),
        settings,
    )


class Watched(Dynamo):
    """Notes the items that are written, and does something once, before the first write."""

    def __init__(self, inner: Dynamo, before: Callable[[], Awaitable[Any]] | None = None) -> None:
        super().__init__(None, deadline_s=1)
        self._inner = inner
        self._before = before
        self.written: list[dict[str, Any]] = []
        self.operations: list[str] = []
        """In their order."""

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """The call, as the other one makes it."""
        parts = parameters.get("TransactItems", [{"Put": parameters}])
        items = [put["Item"] for part in parts for put in part.values() if "Item" in put]
        if items and self._before is not None:
            before, self._before = self._before, None
            await before()
        self.written += items
        self.operations.append(operation)
        return await self._inner.call(operation, **parameters)

    def write_units(self) -> list[int]:
        """What each item costs, by its size, without indexes; transactions cost twice as much."""
        return [
            math.ceil(sum(len(name) + _size(value) for name, value in item.items()) / 1024)
            for item in self.written
        ]


def _size(value: dict[str, Any]) -> int:
    ((kind, plain),) = value.items()
    if kind == "BOOL":
        return 1
    return len(plain) // 2 + 2 if kind == "N" else len(plain)
