"""Why a product is not in an answer, for operators."""

from typing import Any, ClassVar, Final, Generic, Literal

from msgspec import Raw

from api.wire.decoding import BodyDecoder
from api.wire.fields import Answer, Numbers, ProductId
from api.wire.search import (
    IndexUsed,
    SearchBody,
    SearchByExamples,
    SearchByProduct,
    SearchByVector,
    V,
)


class MissByVector(SearchByVector, frozen=True, kw_only=True):
    """Why a product is not among those nearest to a vector."""

    expected_product_id: ProductId


class MissByProduct(SearchByProduct, frozen=True, kw_only=True):
    """Why a product is not among those nearest to another one."""

    expected_product_id: ProductId


class MissByExamples(SearchByExamples, frozen=True, kw_only=True):
    """Why a product is not among those like some examples."""

    expected_product_id: ProductId


class MissBody(SearchBody[V], Generic[V], frozen=True, kw_only=True):
    """A search with one question as it is decoded, and the product that it should have found."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "description": "Exactly one of `vector`, `product_id` and `recommend`.",
        "oneOf": [
            {"$ref": f"#/components/schemas/{form.__name__}"}
            for form in (MissByVector, MissByProduct, MissByExamples)
        ],
        "example": {"product_id": "pandas", "expected_product_id": "polars"},
    }

    expected_product_id: str

    @classmethod
    def decoder(cls, *, large: bool) -> BodyDecoder[Any]:  # noqa: ARG003 - of one question
        """One vector or some examples, which are decoded later in any case."""
        return _miss


_miss: Final[BodyDecoder[Any]] = BodyDecoder(MissBody[Raw], MissBody[bytes | Numbers])


Reason = Literal[
    "found",
    "no_such_row",
    "quarantined",
    "not_indexed_yet",
    "excluded",
    "filtered_out",
    "below_min_score",
    "beyond_k",
    "not_chosen",
    "missed_by_index",
]
"""`not_chosen`: `diversity` or `group_by` left it out. `missed_by_index`: it belongs to the answer,
and the search, which is not exact, did not find it."""


class Miss(Answer):
    """Why a product is not in an answer."""

    product_id: str
    reason: Reason
    detail: str
    rank: int | None
    """Its exact place among all products that match, from 1; null where it cannot have one."""
    score: float | None
    index: IndexUsed
