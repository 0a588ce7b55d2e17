"""Embeddings, one and many."""

from typing import Annotated, Any, ClassVar, Final

from msgspec import UNSET, Meta, Raw, UnsetType

from api.wire.fields import (
    ATTRIBUTE,
    ATTRIBUTES,
    Answer,
    Body,
    EncodedAttributes,
    EncodedVector,
    ProductId,
    StoredAttributes,
    Time,
)
from core.limits import (
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_MAX,
    BATCH_ROWS_MAX,
    DIMENSION_MAX,
    PRODUCT_ID_BYTES_MAX,
)
from core.vectors.arrays import Floats

_PARTS_MAX: Final = DIMENSION_MAX + ATTRIBUTES_BYTES_MAX
"""Commas that a vector and its attributes may have."""
_STORED_VECTOR: Final[dict[str, Any]] = {"type": "array", "items": {"type": "number"}}
ATTRIBUTES_PATCH: Final[dict[str, Any]] = {
    **ATTRIBUTES,
    "maxProperties": 2 * ATTRIBUTES_MAX,  # half of them removed, which nothing can say here
    "additionalProperties": {"oneOf": [*ATTRIBUTE["oneOf"], {"type": "null"}]},
}


class EmbeddingBody(Body, frozen=True):
    """One embedding."""

    SCHEMA: ClassVar[dict[str, Any]] = {"example": {"vector": [0.12, -0.5, 0.33]}}
    PARTS_MAX: ClassVar[int] = _PARTS_MAX

    vector: EncodedVector
    attributes: EncodedAttributes | UnsetType = UNSET
    """Absent: those that it has stay."""


class AttributesPatchBody(Body, frozen=True):
    """A change of the attributes of one embedding."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "example": {"attributes": {"price": 17.5, "in_stock": False, "label": None}}
    }

    attributes: Annotated[Raw, Meta(extra_json_schema=ATTRIBUTES_PATCH)]
    """A merge patch (RFC 7396): null removes a name, which does not count among the 64."""


class BatchEntry(Body, frozen=True):
    """One embedding of a batch."""

    product_id: ProductId
    vector: EncodedVector
    attributes: EncodedAttributes | UnsetType = UNSET
    """Absent: those that it has stay."""


EncodedEntry = Annotated[
    Raw, Meta(extra_json_schema={"$ref": f"#/components/schemas/{BatchEntry.__name__}"})
]


class BatchBody(Body, frozen=True):
    """Many embeddings. They are decoded one by one, so that each bad one can be named."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "example": {"embeddings": [{"product_id": "sku-1", "vector": [0.12, -0.5, 0.33]}]}
    }
    PARTS_MAX: ClassVar[int] = BATCH_ROWS_MAX * (_PARTS_MAX + PRODUCT_ID_BYTES_MAX)

    embeddings: Annotated[
        list[EncodedEntry],
        Meta(min_length=1, max_length=BATCH_ROWS_MAX, description="Each product id once."),
    ]


class EmbeddingStored(Answer):
    """What became of a PUT."""

    product_id: str
    dimension: int
    updated_at: Time


class AttributesPatched(Answer):
    """What became of a PATCH."""

    product_id: str
    updated_at: Time
    attributes: StoredAttributes
    """All of them, after the change."""


class BatchStored(Answer):
    """What became of a batch."""

    stored: int


class EmbeddingItem(Answer, omit_defaults=True):
    """One embedding."""

    product_id: str
    dimension: int
    updated_at: Time
    vector: Annotated[Floats, Meta(extra_json_schema=_STORED_VECTOR)] | None = None
    """As it was sent; absent with `?vectors=false`."""
    attributes: StoredAttributes | None = None
    """Absent where it has none."""


class EmbeddingPage(Answer):
    """A page of embeddings."""

    items: list[EmbeddingItem]
    next_cursor: str | None
