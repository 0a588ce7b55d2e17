"""Searches and what they find."""

from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from api.wire.decoding import BodyDecoder
from api.wire.explanations import Explained
from api.wire.fields import ATTRIBUTES, Answer, Body, EncodedVector, Numbers, ProductId, Time
from api.wire.filters import FILTER
from api.wire.questions import AttributeName, BoostBody, GroupValue, RecommendBody
from core.limits import (
    ATTRIBUTES_MAX,
    BOOSTS_MAX,
    DIMENSION_MAX,
    EXCLUDE_MAX,
    GROUP_SIZE_MAX,
    K_MAX,
    PRODUCT_ID_BYTES_MAX,
    VECTORS_MAX,
    VECTORS_TIMES_K_MAX,
)
from core.watermarks import TOKEN_CHARACTERS_MAX

V = TypeVar("V")

WATERMARK: Any = {"minLength": 1, "maxLength": TOKEN_CHARACTERS_MAX, "pattern": "^[A-Za-z0-9_-]*$"}
"""JSON Schema of a watermark; `core.watermarks` checks it."""


SearchK = Annotated[
    float, Meta(extra_json_schema={"minimum": 1, "maximum": K_MAX, "multipleOf": 1})
]
"""A whole number; checked once the watermark has been read."""


EncodedFilter = Annotated[Raw, Meta(extra_json_schema=FILTER)]
"""A filter as it was sent; `api.wire.filters.sent_filter` decodes it."""


FieldNames = Annotated[
    list[AttributeName],
    Meta(
        max_length=ATTRIBUTES_MAX,
        description="Attributes to give with each product, as `attributes`.",
    ),
]


class SearchOptions(Body, frozen=True):
    """What every search takes."""

    k: SearchK = 10
    exact: Annotated[bool, Meta(description="Score every row.")] = False
    min_score: float | None = None
    exclude: Annotated[list[str], Meta(max_length=EXCLUDE_MAX)] = []  # noqa: RUF012 - msgspec copies it
    min_watermark: (
        Annotated[
            str,
            Meta(
                description="The `X-Watermark` of a write to reflect.", extra_json_schema=WATERMARK
            ),
        ]
        | None
    ) = None
    filter: EncodedFilter | UnsetType = UNSET
    fields: FieldNames | UnsetType = UNSET


class OneQuestion(SearchOptions, frozen=True):
    """What a search takes that asks for one answer, and not for one to each of several vectors."""

    group_by: (
        Annotated[
            AttributeName,
            Meta(
                description="An attribute: `k` is how many of its values are found, and the answer "
                "has the best products of each as `groups`. Products without it, or with a list, "
                "are in none."
            ),
        ]
        | UnsetType
    ) = UNSET
    group_size: Annotated[
        float,
        Meta(
            description="With `group_by`: how many products of a group.",
            extra_json_schema={"minimum": 1, "maximum": GROUP_SIZE_MAX, "multipleOf": 1},
        ),
    ] = 1
    diversity: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Chooses results that are not near each other, by maximal marginal "
            "relevance over at least 4 `k` candidates: each next one has the largest (1 - "
            "diversity) * score - diversity * its largest similarity to one before. Similarity is "
            "the score of the metric. Not with `group_by`.",
        ),
    ] = 0
    boost: (
        Annotated[
            list[BoostBody],
            Meta(
                max_length=BOOSTS_MAX,
                description="Adds to the similarity of at least 4 `k` candidates: `score` is the "
                "sum then, and `similarity` stands beside it.",
            ),
        ]
        | UnsetType
    ) = UNSET
    explain: Annotated[
        bool, Meta(description="Of operators alone: tells how the answer was found, as `explain`.")
    ] = False


class SearchByVector(OneQuestion, frozen=True, kw_only=True):
    """A search for the products nearest to a vector."""

    vector: EncodedVector


class SearchByProduct(OneQuestion, frozen=True, kw_only=True):
    """A search for the products nearest to one of them, which is not among the results."""

    product_id: ProductId


class SearchByExamples(OneQuestion, frozen=True, kw_only=True):
    """A search for products like some examples, which are not among the results."""

    recommend: RecommendBody


class SearchByVectors(SearchOptions, frozen=True, kw_only=True):
    """A search for the products nearest to each of several vectors."""

    vectors: Annotated[
        list[EncodedVector],
        Meta(
            min_length=1,
            max_length=VECTORS_MAX,
            description=f"Vectors times k is at most {VECTORS_TIMES_K_MAX}.",
        ),
    ]


class SearchBody(OneQuestion, Generic[V], frozen=True, kw_only=True):
    """A search as it is decoded: any of the four above. `V` is how its vector comes."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "description": "Exactly one of `vector`, `product_id`, `recommend` and `vectors`.",
        # Each whole: of an object with a choice among its members, generators make no type.
        "oneOf": [
            {"$ref": f"#/components/schemas/{form.__name__}"}
            for form in (SearchByVector, SearchByProduct, SearchByExamples, SearchByVectors)
        ],
        "example": {"product_id": "pandas", "k": 3, "exclude": ["numpy"]},
    }
    PARTS_MAX: ClassVar[int] = VECTORS_MAX * DIMENSION_MAX + EXCLUDE_MAX * PRODUCT_ID_BYTES_MAX

    vector: V | UnsetType = UNSET
    product_id: str | UnsetType = UNSET
    vectors: Annotated[list[Raw], Meta(min_length=1, max_length=VECTORS_MAX)] | UnsetType = UNSET
    recommend: RecommendBody | UnsetType = UNSET

    @property
    def is_plain(self) -> bool:
        """Whether it asks for the nearest products of vectors and nothing else."""
        return (
            self.recommend is UNSET
            and self.group_by is UNSET
            and self.boost is UNSET
            and not self.diversity
            and self.group_size == 1
            and not self.explain
        )

    @classmethod
    def decoder(cls, *, large: bool) -> BodyDecoder[Any]:
        """Vectors of a large body are decoded later, one by one."""
        return _large if large else _small


AnySearch = SearchBody[bytes | list[float] | Raw]
_small: Final[BodyDecoder[Any]] = BodyDecoder(SearchBody[Numbers], SearchBody[bytes | Numbers])
_large: Final[BodyDecoder[Any]] = BodyDecoder(SearchBody[Raw], SearchBody[bytes | Numbers])


class Neighbor(msgspec.Struct, gc=False):
    """One result."""

    product_id: str
    score: float
    """Larger is nearer: cosine, inner product, or the negated squared distance for `l2`."""
    similarity: float | UnsetType = UNSET
    """Of a search with `boost`: the score without what it added."""
    attributes: Annotated[dict[str, Any], Meta(extra_json_schema=ATTRIBUTES)] | UnsetType = UNSET
    """Those of `fields` that the product has."""


class IndexUsed(msgspec.Struct, frozen=True):
    """What answered."""

    build_id: str
    built_at: Time
    recall: float
    """Measured on held-out queries; 1 where every row was scored."""
    exact: bool
    """Whether this answer is exact, and not nearly so."""
    watermark: str
    """RFC 3339, UTC: every change made before it is in the index."""
    fresh: int | None
    """Rows changed since that were searched too, or null where not all of them are: they are too
    many, or were not looked for yet, or not for a while. What was deleted stays hidden, as far as
    it was read."""


class Found(Answer):
    """The nearest products, nearest first."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "example": {
            "neighbors": [
                {"product_id": "polars", "score": 0.8123},
                {"product_id": "modin", "score": 0.7934},
            ],
            "index": {
                "build_id": "01a206ce8d36b97501ea87038dac1d5a",
                "built_at": "2026-01-01T00:00:00.000000Z",
                "recall": 0.97,
                "exact": False,
                "watermark": "2025-12-31T23:59:00.000000Z",
                "fresh": 2,
            },
        }
    }

    neighbors: list[Neighbor]
    index: IndexUsed
    explain: Explained | UnsetType = UNSET


class FoundMany(Answer):
    """The nearest products of each vector, in the order they were sent."""

    results: list[list[Neighbor]]
    index: IndexUsed


class NeighborGroup(msgspec.Struct):
    """The best products of one value of an attribute."""

    value: GroupValue
    neighbors: list[Neighbor]
    """The best first."""


class FoundGroups(Answer):
    """The best groups, by their best product."""

    groups: list[NeighborGroup]
    index: IndexUsed
    explain: Explained | UnsetType = UNSET
