"""Types of fields that several bodies share, each with its bounds.

`Meta` bounds are enforced while decoding. What stands in `extra_json_schema` only describes: a
check with a better message, or one that names every bad field, enforces it from the same constant.
"""

from typing import Annotated, Any, ClassVar, Final, Self

import msgspec
from msgspec import Meta, Raw

from api.admission.executor import Steps
from api.wire.decoding import LARGE_BYTES, BodyDecoder, body_decoder, count_parts
from core.attributes.values import NAME as ATTRIBUTE_NAME
from core.limits import (
    ATTRIBUTE_CHARACTERS_MAX,
    ATTRIBUTE_LIST_MAX,
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_MAX,
    BUILD_ID_CHARACTERS_MAX,
    DIMENSION_MAX,
    MATRIX_K_MAX,
    PRODUCT_ID_BYTES_MAX,
)
from core.vectors.arrays import NORM_MAX

NUMBERS_CEILING: Final = 1_000_000
"""Far above the limit of a vector, which is checked afterwards to name both numbers: a longer list
is refused before it is made, which msgpack's headers allow."""

_NUMBER_MAX: Final = 3.4028234e38
"""Just below the largest float32, to which validators would have to round as K9 does."""
_CONTROL: Final = r"\u0000-\u001f\u007f-\u009f"
PRODUCT_ID: Final[dict[str, Any]] = {
    "minLength": 1,
    "maxLength": PRODUCT_ID_BYTES_MAX,
    "pattern": rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$",
    "not": {"enum": [".", ".."]},
    "example": "pandas",
}
"""JSON Schema of a product id; `core.identifiers` checks it."""
VECTOR: Final[dict[str, Any]] = {
    "type": "array",
    "items": {"type": "number", "minimum": -_NUMBER_MAX, "maximum": _NUMBER_MAX},
    "minItems": 1,
    "maxItems": DIMENSION_MAX,
    "description": (
        "As many numbers as the model version's dimension. Under ip and l2 their norm is up to "
        f"{NORM_MAX:.0e}; under cosine not all of them are zero."
    ),
}
"""JSON Schema of a vector as it is sent; `core.vectors.arrays.check_vector` checks it."""

ATTRIBUTE: Final[dict[str, Any]] = {
    "oneOf": [
        {"type": "string", "maxLength": ATTRIBUTE_CHARACTERS_MAX},
        {"type": "number"},
        {"type": "boolean"},
        {
            "type": "array",
            "items": {"type": "string", "maxLength": ATTRIBUTE_CHARACTERS_MAX},
            "maxItems": ATTRIBUTE_LIST_MAX,
        },
    ]
}
"""JSON Schema of one attribute; `core.attributes.values` checks it."""
ATTRIBUTES: Final[dict[str, Any]] = {
    "type": "object",
    "propertyNames": {"pattern": f"^{ATTRIBUTE_NAME}$"},
    "maxProperties": ATTRIBUTES_MAX,
    "additionalProperties": ATTRIBUTE,
    "description": (
        f"Up to {ATTRIBUTES_MAX} names with strings, finite numbers, booleans or lists of strings, "
        f"{ATTRIBUTES_BYTES_MAX} bytes of JSON in all. A whole number is one that float64 holds "
        "exactly."
    ),
    "example": {"brand": "acme", "price": 19.9, "in_stock": True, "colors": ["red", "blue"]},
}
"""JSON Schema of attributes."""

EncodedAttributes = Annotated[Raw, Meta(extra_json_schema=ATTRIBUTES)]
"""Attributes as they were sent; `api.wire.attributes.sent_attributes` decodes them."""
StoredAttributes = Annotated[dict[str, Any], Meta(extra_json_schema=ATTRIBUTES)]
ProductId = Annotated[str, Meta(extra_json_schema=PRODUCT_ID)]
EncodedVector = Annotated[Raw, Meta(extra_json_schema=VECTOR)]
"""A vector as it was sent; `api.wire.vectors.floats` decodes it."""
Numbers = Annotated[list[float], Meta(max_length=NUMBERS_CEILING)]
MatrixK = Annotated[float, Meta(ge=1, le=MATRIX_K_MAX, multiple_of=1)]
"""A whole number. 10, 10.0 and 1e1 are the same number in JSON (RFC 8259), hence a float."""
BuildId = Annotated[str, Meta(min_length=1, max_length=BUILD_ID_CHARACTERS_MAX)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339, UTC."""


class Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a caller sends. A field that is unknown is refused: it is a misspelling."""

    SCHEMA: ClassVar[dict[str, Any]] = {}
    """What its JSON Schema has beyond what the fields say."""
    PARTS_MAX: ClassVar[int] = DIMENSION_MAX
    """Parts that a valid body may have: see `count_parts`."""

    @classmethod
    def decoding(cls, data: bytes, *, msgpack: bool) -> Steps[Self]:
        """The body that the bytes are.

        Raises:
            Unreadable: they cannot be read.
            Invalid: they are not such a body.
        """
        large = len(data) > LARGE_BYTES
        if large and not msgpack:
            yield from count_parts(data, cls.PARTS_MAX)
        return cls.decoder(large=large).decode(data, msgpack=msgpack)

    @classmethod
    def decoder(cls, *, large: bool) -> BodyDecoder[Self]:  # noqa: ARG003 - a subclass has two
        """What decodes it."""
        return body_decoder(cls)


class Answer(msgspec.Struct, kw_only=True):
    """What a caller gets."""
