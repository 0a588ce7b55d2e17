"""How embeddings are stored: rows, tombstones, the shard of each, and positions in their lists."""

from typing import Final

import msgspec

from core import telemetry
from core.dynamo import tables
from core.dynamo.expressions import Condition, Update, equals, exists, key, missing
from core.dynamo.items import check_row, float32_bytes
from core.dynamo.wire import AttributeValue, Item, Page, RequestItem, WireParser
from core.errors import Corrupt, NotFound, OtherGeneration
from core.formats import ATTRIBUTE
from core.models import Embedding, Model
from core.results import DeletedEmbedding

GENERATION: Final = "generation"
"""Attribute with the generation of the model version that a row was written to; rows of
generation 0 have none, as those of releases up to 23e14f8."""
WITHOUT_VECTOR = (
    "product_id",
    "model_version",
    "updated_at",
    "deleted_at",
    "vector_dimension",
    GENERATION,
    ATTRIBUTE,
)
"""All attributes of a row but its vector."""

_log = telemetry.logger(__name__)


class _Text(msgspec.Struct, frozen=True, gc=False):
    S: str | None = None


class _Number(msgspec.Struct, frozen=True, gc=False):
    N: str | None = None


class PulledRow(msgspec.Struct, gc=False, kw_only=True):
    """An item as a read of many rows decodes it: what makes an `Embedding`, and nothing else."""

    product_id: _Text = _Text()
    model_version: _Text = _Text()
    embedding_vector: AttributeValue | None = None
    vector_dimension: _Number | None = None
    updated_at: _Text = _Text()
    deleted_at: _Text | None = None
    generation: _Number | None = None
    format: _Number | None = None


PULLED: Final = WireParser(msgspec.json.Decoder(Page[PulledRow]))
"""Of the replies to queries for `decode_pulled`."""


class EmbeddingPosition(msgspec.Struct, frozen=True):
    """A position in a list of embeddings: a shard, and the last key that was read of it."""

    shard: int = 0
    updated_at: str | None = None
    product_id: str | None = None
    generation: int = 0
    """Of the model version that is listed."""


def start_key(model: Model, at: EmbeddingPosition) -> RequestItem | None:
    """The key after which a query of the shard continues; None at its start."""
    if at.product_id is None or at.updated_at is None:
        return None
    partition = tables.model_shard(model.model_version, at.shard, model.generation)
    return {
        **row_key(model.model_version, at.product_id),
        tables.MODEL_SHARD: {"S": partition},
        "updated_at": {"S": at.updated_at},
    }


def position_after(model: Model, shard: int, last: Item) -> EmbeddingPosition:
    """The position after an item of a shard."""
    return EmbeddingPosition(shard, last["updated_at"].S, last["product_id"].S, model.generation)


def shard_key(model: Model, product_id: str) -> str:
    """The partition of ModelVersionIndex that a product's row is in."""
    shard = tables.shard_of(product_id, model.shards)
    return tables.model_shard(model.model_version, shard, model.generation)


def of_generation(generation: int) -> Condition:
    """The row or record is of this generation; where that is 0, it may be absent as well."""
    return equals(GENERATION, generation) if generation else missing(GENERATION)


def writable(model: Model) -> Condition:
    """The row is absent, or of the same generation."""
    if not model.generation:
        return missing(GENERATION)
    return missing("product_id") | of_generation(model.generation)


def generation_of(item: Item) -> int:
    """The generation of a row."""
    return _int(item.get(GENERATION))


def row_key(model_version: str, product_id: str) -> RequestItem:
    """The key of a row."""
    return key(product_id=product_id, model_version=model_version)


def live_row(model: Model, product_id: str, vector: bytes, written_at: str) -> RequestItem:
    """The item of an embedding stored at this time; `vector` is float32 little-endian."""
    own = {GENERATION: {"N": str(model.generation)}} if model.generation else {}
    return {
        **own,
        "product_id": {"S": product_id},
        "model_version": {"S": model.model_version},
        tables.MODEL_SHARD: {"S": shard_key(model, product_id)},
        "embedding_vector": {"B": vector},
        "vector_dimension": {"N": str(model.dimension)},
        "created_at": {"S": written_at},
        "updated_at": {"S": written_at},
    }


def tombstone_update(model: Model, deleted: DeletedEmbedding) -> tuple[Update, Condition]:
    """What turns a live row into its tombstone, and the condition that it lives."""
    change = Update(
        set={
            "updated_at": deleted.deleted_at,
            "deleted_at": deleted.deleted_at,
            tables.MODEL_SHARD: shard_key(model, deleted.product_id),
        },
        remove=("embedding_vector", "vector_dimension", "created_at"),
    )
    lives = exists("product_id") & missing("deleted_at")
    return change, lives & of_generation(model.generation)


def unchanged(before: Item | None) -> Condition:
    """The row is as it was read, or as absent."""
    if before is None:
        return missing("product_id")
    return equals("updated_at", before["updated_at"]) & of_generation(generation_of(before))


def decode(item: Item) -> Embedding:
    """The embedding or tombstone of an item, whichever attributes were read.

    Raises:
        Corrupt: its vector is none that could have been stored by K9.
        NewerFormat: a later release wrote it.
    """
    stored = item.get("embedding_vector")
    return _embedding(item, None if stored is None else float32_bytes(stored))


def decode_any(item: Item) -> Embedding:
    """The same of one among many: a vector that cannot be read is left out, and stops no other.

    Such a row is live and without a vector, which its reader treats like a wrong dimension.
    """
    try:
        return decode(item)
    except Corrupt as error:
        _log.warning("a row cannot be read", product_id=_text(item, "product_id"), why=str(error))
        return _embedding(item, None)


def decode_pulled(row: PulledRow) -> Embedding:
    """The same as `decode_any`, at a third of its time."""
    vector = row.embedding_vector
    if (vector is not None and vector.B is None) or row.format is not None:
        return decode_any(_item(row))
    stored = None if vector is None else vector.B
    return Embedding(
        row.product_id.S or "",
        row.model_version.S or "",
        stored,
        len(stored) // 4 if stored is not None else _int(row.vector_dimension),
        row.updated_at.S or "",
        None if row.deleted_at is None else row.deleted_at.S,
        0 if row.generation is None else _int(row.generation),
    )


def unknown(model_version: str, product_id: str) -> NotFound:
    """The error for a row that is not there, or is a tombstone."""
    return NotFound(f"{model_version} has no embedding of {product_id!r}")


def other_generation(model: Model) -> OtherGeneration:
    """The error for a row of another model version of the same name."""
    return OtherGeneration(f"a row of {model.model_version} is of another generation")


def _embedding(item: Item, vector: bytes | None) -> Embedding:
    if ATTRIBUTE in item:
        check_row(item, "a stored embedding")
    deleted = item.get("deleted_at")
    return Embedding(
        product_id=_text(item, "product_id"),
        model_version=_text(item, "model_version"),
        vector=vector,
        dimension=_dimension(item, vector),
        updated_at=_text(item, "updated_at"),
        deleted_at=None if deleted is None else deleted.S,
        generation=generation_of(item),
    )


def _text(item: Item, name: str) -> str:
    value = item.get(name)
    return value.S or "" if value is not None else ""


def _dimension(item: Item, vector: bytes | None) -> int:
    if vector is not None:
        return len(vector) // 4
    return _int(item.get("vector_dimension"))


def _int(stored: AttributeValue | _Number | None) -> int:
    return int(stored.N or 0) if stored is not None else 0


def _item(row: PulledRow) -> Item:
    """The item that was decoded so."""
    parts = ((name, getattr(row, name)) for name in row.__struct_fields__)
    return {
        name: part
        if isinstance(part, AttributeValue)
        else AttributeValue(S=getattr(part, "S", None), N=getattr(part, "N", None))
        for name, part in parts
        if part is not None
    }
