"""Positions in a list of embeddings, which go through the shards one after the other."""

import msgspec

from core.dynamo import tables
from core.dynamo.wire import Item, RequestItem
from core.models import Model
from core.repositories.embedding_rows import row_key


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
    return {
        **row_key(model.model_version, at.product_id),
        tables.MODEL_SHARD: {
            "S": tables.model_shard(model.model_version, at.shard, model.generation)
        },
        "updated_at": {"S": at.updated_at},
    }


def position_after(model: Model, shard: int, last: Item) -> EmbeddingPosition:
    """The position after an item of a shard."""
    return EmbeddingPosition(shard, last["updated_at"].S, last["product_id"].S, model.generation)
