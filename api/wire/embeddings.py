"""Embeddings, one and many."""

from typing import Annotated, Any, ClassVar

from msgspec import Meta, Raw

from api.wire.fields import VECTOR, Answer, Body, EncodedVector, ProductId, Time
from core.limits import BATCH_ROWS_MAX, DIMENSION_MAX, PRODUCT_ID_BYTES_MAX
from core.vectors.arrays import Floats


class EmbeddingBody(Body, frozen=True):
    """One embedding."""

    SCHEMA: ClassVar[dict[str, Any]] = {"example": {"vector": [0.12, -0.5, 0.33]}}

    vector: EncodedVector


class BatchEntry(Body, frozen=True):
    """One embedding of a batch."""

    product_id: ProductId
    vector: EncodedVector


EncodedEntry = Annotated[
    Raw, Meta(extra_json_schema={"$ref": f"#/components/schemas/{BatchEntry.__name__}"})
]


class BatchBody(Body, frozen=True):
    """Many embeddings. They are decoded one by one, so that each bad one can be named."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "example": {"embeddings": [{"product_id": "sku-1", "vector": [0.12, -0.5, 0.33]}]}
    }
    PARTS_MAX: ClassVar[int] = BATCH_ROWS_MAX * (DIMENSION_MAX + PRODUCT_ID_BYTES_MAX)

    embeddings: Annotated[
        list[EncodedEntry],
        Meta(min_length=1, max_length=BATCH_ROWS_MAX, description="Each product id once."),
    ]


class EmbeddingStored(Answer):
    """What became of a PUT."""

    product_id: str
    dimension: int
    updated_at: Time


class BatchStored(Answer):
    """What became of a batch."""

    stored: int


class EmbeddingItem(Answer, omit_defaults=True):
    """One embedding."""

    product_id: str
    dimension: int
    updated_at: Time
    vector: Annotated[Floats, Meta(extra_json_schema=VECTOR)] | None = None
    """As it was sent; absent with `?vectors=false`."""


class EmbeddingPage(Answer):
    """A page of embeddings."""

    items: list[EmbeddingItem]
    next_cursor: str | None
