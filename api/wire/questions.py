"""What a search may ask beyond the nearest products, as it comes over the wire."""

from collections.abc import Collection, Sequence
from math import isfinite
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Raw, UnsetType

from api.wire.decoding import BodyDecoder
from api.wire.fields import ATTRIBUTE, PRODUCT_ID, VECTOR, Body
from api.wire.vectors import floats
from core.attributes.boosts import Boost
from core.attributes.values import NAME, NOT_A_NAME, UNAVAILABLE, is_name
from core.errors import FieldError, Invalid
from core.identifiers import product_id_problem
from core.limits import ATTRIBUTES_MAX, BOOST_MAX, EXAMPLES_MAX
from core.vectors.arrays import Floats

AttributeName = Annotated[str, Meta(extra_json_schema={"pattern": f"^{NAME}$", "example": "price"})]
"""The name of an attribute; `name_problem` checks it."""
GroupValue = Annotated[Any, Meta(extra_json_schema={"oneOf": ATTRIBUTE["oneOf"][:3]})]
_Bounded = Annotated[float, Meta(ge=-BOOST_MAX, le=BOOST_MAX)]
EncodedExample = Annotated[
    Raw, Meta(extra_json_schema={"oneOf": [{"type": "string", **PRODUCT_ID}, VECTOR]})
]
"""An example as it was sent; `sent_example` decodes it."""


class RecommendBody(Body, frozen=True):
    """Examples of what is looked for. Each is a product id or a vector."""

    positive: Annotated[list[EncodedExample], Meta(min_length=1, max_length=EXAMPLES_MAX)]
    negative: (
        Annotated[
            list[EncodedExample],
            Meta(max_length=EXAMPLES_MAX, description=f"With `positive` at most {EXAMPLES_MAX}."),
        ]
        | UnsetType
    ) = UNSET
    strategy: (
        Annotated[
            Literal["average", "best"],
            Meta(
                description="`average`, if left out, searches for one vector: the mean of the "
                "positive examples, or twice it less the mean of the negative ones. `best` scores "
                "each product by the nearest positive example, less by how much a negative one is "
                "nearer than that."
            ),
        ]
        | UnsetType
    ) = UNSET

    @property
    def against(self) -> Sequence[Raw]:
        """The negative examples."""
        return () if self.negative is UNSET else self.negative


class BoostBody(Body, frozen=True):
    """Adds `weight` times a numeric attribute, scaled from `min` to `max` and clipped to 0 to 1."""

    attribute: AttributeName
    weight: Annotated[_Bounded, Meta(extra_json_schema={"example": 0.2})]
    min: Annotated[_Bounded, Meta(extra_json_schema={"example": 0})]
    max: Annotated[_Bounded, Meta(description="Above `min`.", extra_json_schema={"example": 100})]


_text: Final[BodyDecoder[str]] = BodyDecoder(str)
_QUOTE: Final = ord('"')
_SHORT_TEXT: Final = range(0xA0, 0xC0)
_LONG_TEXT: Final = frozenset({0xD9, 0xDA, 0xDB})
"""The first byte of text in msgpack."""


def sent_example(wire: Raw, at: str, *, msgpack: bool) -> str | Floats:
    """A product id, or a vector that is not checked beyond being numbers.

    Raises:
        Unreadable: it cannot be read.
        Invalid: it is neither, or no valid product id.
    """
    first = memoryview(wire)[0]
    is_text = first in _SHORT_TEXT or first in _LONG_TEXT if msgpack else first == _QUOTE
    if not is_text:
        return floats(wire, at, msgpack=msgpack)
    product_id = _text.decode(wire, msgpack=msgpack, at=at)
    problem = product_id_problem(product_id)
    if problem:
        raise Invalid.of(FieldError(at, problem))
    return product_id


def sent_boosts(bodies: Sequence[BoostBody], unavailable: Collection[str]) -> list[Boost]:
    """The boosts of a search, none of them by `unavailable` attributes.

    Raises:
        Invalid: one is not valid.
    """
    for number, body in enumerate(bodies):
        at = f"boost[{number}]"
        check_name(body.attribute, f"{at}.attribute", unavailable)
        for name in ("weight", "min", "max"):
            if not isfinite(getattr(body, name)):
                raise Invalid.of(FieldError(f"{at}.{name}", "must be a finite number"))
        if not body.min < body.max:
            raise Invalid.of(FieldError(f"{at}.max", "must be above `min`"))
    return [Boost(body.attribute, body.weight, body.min, body.max) for body in bodies]


def field_names(text: str, unavailable: Collection[str]) -> list[str]:
    """The names of attributes that a parameter of the query has, with commas between.

    Raises:
        Invalid: one is no name of an attribute or is `unavailable`, or there are too many.
    """
    names = text.split(",", ATTRIBUTES_MAX)
    if len(names) > ATTRIBUTES_MAX:
        raise Invalid.of(FieldError("fields", f"has more than {ATTRIBUTES_MAX} names"))
    for name in names:
        check_name(name, "fields", unavailable)
    return names


def check_name(name: str, at: str, unavailable: Collection[str] = frozenset()) -> None:
    """Checks the name of an attribute.

    Raises:
        Invalid: no attribute can have it, or it is one of `unavailable`.
    """
    if not is_name(name):
        raise Invalid.of(FieldError(at, NOT_A_NAME))
    if name in unavailable:
        raise Invalid.of(FieldError(at, UNAVAILABLE))
