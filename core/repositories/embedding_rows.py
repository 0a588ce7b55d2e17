"""How an embedding lies in its table: rows, tombstones, and the shard that each is in."""

from core import telemetry
from core.dynamo import tables
from core.dynamo.expressions import Condition, Update, equals, exists, key, missing
from core.dynamo.items import float32_bytes
from core.dynamo.wire import Item, RequestItem
from core.errors import Corrupt, NotFound
from core.models import Embedding, Model

SMALL = ("product_id", "model_version", "updated_at", "deleted_at", "vector_dimension")
"""All of a row but its vector."""

_log = telemetry.logger(__name__)


def shard_key(model: Model, product_id: str) -> str:
    """The partition of ModelVersionIndex that a product's row is in."""
    return tables.model_shard(model.model_version, tables.shard_of(product_id, model.shards))


def row_key(model_version: str, product_id: str) -> RequestItem:
    """The key of a row."""
    return key(product_id=product_id, model_version=model_version)


def live_row(embedding: Embedding, model: Model) -> RequestItem:
    """The item of an embedding that has a vector."""
    return {
        "product_id": {"S": embedding.product_id},
        "model_version": {"S": model.model_version},
        tables.MODEL_SHARD: {"S": shard_key(model, embedding.product_id)},
        "embedding_vector": {"B": embedding.vector},
        "vector_dimension": {"N": str(embedding.dimension)},
        "created_at": {"S": embedding.updated_at},
        "updated_at": {"S": embedding.updated_at},
    }


def embedding_of(model: Model, product_id: str, vector: bytes, moment: str) -> Embedding:
    """An embedding that is stored at this moment; `vector` is float32 little-endian."""
    return Embedding(
        product_id=product_id,
        model_version=model.model_version,
        vector=vector,
        dimension=model.dimension,
        updated_at=moment,
    )


def tombstone_of(model: Model, product_id: str, moment: str) -> Embedding:
    """What is left of an embedding that is deleted at this moment."""
    return Embedding(
        product_id=product_id,
        model_version=model.model_version,
        vector=None,
        dimension=0,
        updated_at=moment,
        deleted_at=moment,
    )


def burial(model: Model, tombstone: Embedding) -> tuple[Update, Condition]:
    """What turns a live row into its tombstone, and the condition that it lives."""
    change = Update(
        set={
            "updated_at": tombstone.updated_at,
            "deleted_at": tombstone.deleted_at,
            tables.MODEL_SHARD: shard_key(model, tombstone.product_id),
        },
        remove=("embedding_vector", "vector_dimension", "created_at"),
    )
    return change, exists("product_id") & missing("deleted_at")


def unchanged(there: Item | None) -> Condition:
    """The row is as it was read, or as absent."""
    if there is None:
        return missing("product_id")
    return equals("updated_at", there["updated_at"])


def decode(item: Item) -> Embedding:
    """The embedding or tombstone of an item, whichever attributes were asked for.

    Raises:
        Corrupt: its vector is none that could have been stored by K9.
    """
    stored = item.get("embedding_vector")
    return _embedding(item, None if stored is None else float32_bytes(stored))


def decode_any(item: Item) -> Embedding:
    """The same of one among many: a vector that cannot be read is left out, and stops no other.

    Whoever takes the rows finds a live one without a vector, as one of a wrong dimension.
    """
    try:
        return decode(item)
    except Corrupt as error:
        _log.warning("a row cannot be read", product_id=_text(item, "product_id"), why=str(error))
        return _embedding(item, None)


def unknown(model_version: str, product_id: str) -> NotFound:
    """The error for a row that is not there, or is a tombstone."""
    return NotFound(f"{model_version} has no embedding of {product_id!r}")


def _embedding(item: Item, vector: bytes | None) -> Embedding:
    deleted = item.get("deleted_at")
    return Embedding(
        product_id=_text(item, "product_id"),
        model_version=_text(item, "model_version"),
        vector=vector,
        dimension=_dimension(item, vector),
        updated_at=_text(item, "updated_at"),
        deleted_at=None if deleted is None else deleted.S,
    )


def _text(item: Item, name: str) -> str:
    value = item.get(name)
    return value.S or "" if value is not None else ""


def _dimension(item: Item, vector: bytes | None) -> int:
    if vector is not None:
        return len(vector) // 4
    stored = item.get("vector_dimension")
    return int(stored.N or 0) if stored else 0
