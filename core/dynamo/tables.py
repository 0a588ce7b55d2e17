"""Tables, their keys and indexes, and how rows are spread over shards.

The template `deploy/cloudformation/data.yaml` defines the same tables; a test compares the two.
"""

from typing import Final
from zlib import crc32

import msgspec


class Key(msgspec.Struct, frozen=True):
    """The key of a table or of an index; every key attribute of K9 is a string."""

    partition: str
    sort: str | None = None

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of its attributes, partition key first."""
        return (self.partition,) if self.sort is None else (self.partition, self.sort)


class Table(msgspec.Struct, frozen=True):
    """One table. Its full name is `settings.table(name)`."""

    name: str
    key: Key
    indexes: dict[str, Key] = {}
    ttl: str | None = None
    """Attribute with the Unix time in seconds at which DynamoDB may remove a row."""


USER_REPORTS_INDEX: Final = "UserReportsIndex"
MODEL_VERSION_INDEX: Final = "ModelVersionIndex"
MODEL_BUILDS_INDEX: Final = "ModelBuildsIndex"
OPEN_BUILDS_INDEX: Final = "OpenBuildsIndex"

MODEL_IMPORTS_INDEX: Final = "ModelImportsIndex"
OPEN_IMPORTS_INDEX: Final = "OpenImportsIndex"

MODEL_SHARD: Final = "model_shard"
"""Partition key of ModelVersionIndex: `model_shard(...)`'s text."""
OPEN: Final = "open"
"""Partition key of OpenBuildsIndex and OpenImportsIndex; a row has it only until it ends, so that
the index is sparse."""
OPEN_VALUE: Final = "1"
"""The value of `open` that workers of every release query: few builds are open at once."""
OPEN_LATER_VALUE: Final = "2"
"""That of builds which workers of releases up to 23e14f8 would do wrongly: they do not query it."""
OPEN_VALUES: Final = (OPEN_VALUE, OPEN_LATER_VALUE)

_ATTRIBUTES: Final = "#attributes"

USERS: Final = Table("users", Key("user_id"))
REPORTS: Final = Table("reports", Key("id"), {USER_REPORTS_INDEX: Key("user_id", "created_at")})
EMBEDDINGS: Final = Table(
    "embeddings",
    Key("product_id", "model_version"),
    {MODEL_VERSION_INDEX: Key(MODEL_SHARD, "updated_at")},
)
MODELS: Final = Table("models", Key("model_version"))
BUILDS: Final = Table(
    "builds",
    Key("build_id"),
    {
        MODEL_BUILDS_INDEX: Key("model_version", "requested_at"),
        OPEN_BUILDS_INDEX: Key(OPEN, "requested_at"),
    },
)
IDEMPOTENCY: Final = Table("idempotency", Key("caller", "key"), ttl="expires_at")
IMPORTS: Final = Table(
    "imports",
    Key("import_id"),
    {
        MODEL_IMPORTS_INDEX: Key("model_version", "requested_at"),
        OPEN_IMPORTS_INDEX: Key(OPEN, "requested_at"),
    },
)

ALL: Final = (USERS, REPORTS, EMBEDDINGS, MODELS, BUILDS, IDEMPOTENCY, IMPORTS)


def shard_of(product_id: str, shards: int) -> int:
    """The shard of a product, 0 to `shards` - 1: never changes, since rows are stored by it."""
    return crc32(product_id.encode()) % shards


def attributes_name(model_version: str) -> str:
    """The sort key of the items that hold the attributes of a model version's embeddings.

    No model version can have such a name, so that no release takes one for a row.
    """
    return model_version + _ATTRIBUTES


def is_attributes_name(model_version: str) -> bool:
    """Whether the sort key of an item is that of attributes."""
    return model_version.endswith(_ATTRIBUTES)


def attributes_shard(model_version: str, shard: int, generation: int) -> str:
    """The partition of ModelVersionIndex that these items are in: one of no rows."""
    return f"{attributes_name(model_version)}#{generation}#{shard}"


def model_shard(model_version: str, shard: int, generation: int = 0) -> str:
    """The text of ModelVersionIndex's partition key.

    The generation is part of it, so that a late write to a deleted model version is in no
    partition of a later one of the same name. Generation 0 is left out, as in rows of releases up
    to 23e14f8.
    """
    if not generation:
        return f"{model_version}#{shard}"
    return f"{model_version}#{generation}#{shard}"
