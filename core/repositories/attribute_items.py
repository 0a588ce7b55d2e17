"""How attributes are stored: in an item beside the row of their embedding.

A change of them costs no write of the vector, at whatever dimension. Releases that do not know such
items neither read nor write them, since their keys and their partitions of the index are no row's.
A deletion of the embedding leaves a tombstone here too: attributes that were read before it can no
longer be written.
"""

import secrets
from typing import Final

import msgspec

from core.attributes.values import Attributes, decode_attributes, encode_attributes
from core.dynamo import tables
from core.dynamo.expressions import Condition, equals, key, missing
from core.dynamo.items import check_row
from core.dynamo.wire import Item, RequestItem
from core.errors import Corrupt
from core.models import Embedding, Model, StoredAttributes
from core.repositories.embedding_rows import GENERATION, generation_of

_ATTRIBUTES: Final = "attributes"
"""Attribute with the JSON text; a tombstone has none."""
_ALONE: Final = "alone"
"""Attribute of an item that was written without a vector."""
_REVISION: Final = "revision"
"""Attribute with a random text of each write: an item of the same one is the same."""


def attributes_key(model_version: str, product_id: str) -> RequestItem:
    """The key of an embedding's attributes."""
    return key(product_id=product_id, model_version=tables.attributes_name(model_version))


def attributes_item(
    model: Model, product_id: str, attributes: Attributes, written_at: str, *, alone: bool = False
) -> RequestItem:
    """The item of valid attributes written at this time, alone or with the vector."""
    item = _item(model, product_id, written_at)
    item[_ATTRIBUTES] = {"S": encode_attributes(attributes)}
    if alone:
        item[_ALONE] = {"BOOL": True}
    return item


def attributes_tombstone(model: Model, product_id: str, deleted_at: str) -> RequestItem:
    """The item left by the deletion of an embedding at this time."""
    item = _item(model, product_id, deleted_at)
    item["deleted_at"] = {"S": deleted_at}
    return item


def is_same(before: Item | None) -> Condition:
    """The item is as it was read, or as absent."""
    if before is None:
        return missing("product_id")
    return equals(_REVISION, before[_REVISION])


def stored_attributes(item: Item | None, generation: int) -> Attributes:
    """The attributes of an embedding of this generation; empty where there are none.

    Raises:
        Corrupt: they cannot be read.
        NewerFormat: a later release wrote them.
    """
    if item is None or generation_of(item) != generation:
        return {}
    check_row(item, "stored attributes")
    if "deleted_at" in item:
        return {}
    stored = item.get(_ATTRIBUTES)
    if stored is None or stored.S is None:
        raise Corrupt("stored attributes are no text")
    return decode_attributes(stored.S)


def unread_attributes(item: Item) -> StoredAttributes:
    """The attributes in an item, of whatever generation, whose text is not decoded here.

    Raises:
        NewerFormat: a later release wrote them.
    """
    check_row(item, "stored attributes")
    text = None if "deleted_at" in item else item.get(_ATTRIBUTES)
    return StoredAttributes(
        item["product_id"].S or "",
        "" if text is None else text.S or "",
        item["updated_at"].S or "",
        alone=_ALONE in item,
    )


def attached(row: Embedding, item: Item | None) -> Embedding:
    """A live row with its attributes, and the time of the later change of the two.

    Raises:
        Corrupt: they cannot be read.
        NewerFormat: a later release wrote them.
    """
    attributes = stored_attributes(item, row.generation)
    if item is None or generation_of(item) != row.generation or "deleted_at" in item:
        return row
    changed_at = item["updated_at"].S or ""
    return msgspec.structs.replace(
        row, attributes=attributes or None, updated_at=max(row.updated_at, changed_at)
    )


def _item(model: Model, product_id: str, written_at: str) -> RequestItem:
    shard = tables.shard_of(product_id, model.shards)
    partition = tables.attributes_shard(model.model_version, shard, model.generation)
    own = {GENERATION: {"N": str(model.generation)}} if model.generation else {}
    return {
        **attributes_key(model.model_version, product_id),
        **own,
        tables.MODEL_SHARD: {"S": partition},
        "updated_at": {"S": written_at},
        _REVISION: {"S": secrets.token_hex(8)},
    }
