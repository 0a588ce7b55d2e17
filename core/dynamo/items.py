"""Struct ↔ item: how a domain Struct is stored in DynamoDB, and exact whole numbers."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import UnionType
from typing import Any, Final, Generic, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import numpy as np

from core.dynamo.wire import AttributeValue, RequestItem, RequestValue, request_value
from core.errors import Corrupt, NumberOutOfRange

T = TypeVar("T", bound=msgspec.Struct)

DIGITS_MAX: Final = 38
"""Significant digits of a number in DynamoDB."""
EXPONENT_MAX: Final = 125
"""Exponent of the first digit of the largest number, 9.99…e125."""
_INT_BITS_MAX: Final = 420
"""No integer of more bits is in range; longer ones are refused before they become text."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)


def number_text(number: int) -> str:
    """A whole number as DynamoDB takes it, exact.

    Raises:
        NumberOutOfRange: over 9.99…e125, or of more than 38 significant digits.
    """
    if number.bit_length() > _INT_BITS_MAX:
        raise NumberOutOfRange("a number is over 9.99e125, the largest that DynamoDB stores")
    text = str(number)
    digits = text.lstrip("-")
    if len(digits) > EXPONENT_MAX + 1:
        raise NumberOutOfRange("a number is over 9.99e125, the largest that DynamoDB stores")
    significant = len(digits.rstrip("0"))
    if significant > DIGITS_MAX:
        raise NumberOutOfRange(
            f"a number has {significant} significant digits; DynamoDB stores {DIGITS_MAX}"
        )
    return text


def int_of(text: str) -> int:
    """A number that must be whole.

    Raises:
        Corrupt: it is no number, or not whole.
    """
    try:
        return int(text)
    except ValueError:
        if not _NUMBER.fullmatch(text):
            raise Corrupt("a stored number cannot be read") from None
    number = Decimal(text)
    whole = number.to_integral_value() if number.adjusted() <= EXPONENT_MAX else None
    if whole is None or whole != number:
        raise Corrupt("a stored number should be whole and is not")
    return int(whole)


def attribute_of(value: Any) -> RequestValue:
    """A str, int, bool, bytes, list or tuple of them, or a value off the wire, for a request.

    Raises:
        NumberOutOfRange: DynamoDB cannot store the number.
        TypeError: it is of another type.
    """
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, bool):  # before int, of which it is a subclass
        return {"BOOL": value}
    if isinstance(value, int):
        return {"N": number_text(value)}
    if isinstance(value, bytes):
        return {"B": value}
    if isinstance(value, AttributeValue):
        return request_value(value)
    if isinstance(value, list | tuple):
        return {"L": [attribute_of(part) for part in value]}
    raise TypeError(f"a {type(value).__name__} has no form in DynamoDB")


def float32_bytes(value: AttributeValue) -> bytes:
    """A vector as stored, Binary or (older data) a list of numbers, as float32 little-endian.

    A number over float32's range becomes infinite: builds quarantine such rows.

    Raises:
        Corrupt: it is neither, or not whole float32 numbers.
    """
    if value.B is not None:
        return value.B
    if value.L is None:
        raise Corrupt("a stored vector is neither binary nor a list of numbers")
    texts = [part.N for part in value.L]
    if None in texts:
        raise Corrupt("a stored vector has an entry that is not a number")
    try:
        numbers = np.array(texts, dtype=np.str_).astype(np.float64) if texts else np.empty(0)
    except ValueError:
        raise Corrupt("a stored vector has a number that cannot be read") from None
    with np.errstate(over="ignore"):
        return numbers.astype("<f4").tobytes()


_Encode = Callable[[Any], RequestValue]
_Decode = Callable[[AttributeValue], Any]


class Codec(Generic[T]):
    """Turns one type of Struct into items and back; a field is the attribute of its name.

    By its type: str and Literal are S; int N; bool BOOL; bytes B; a list or tuple of str L of S;
    anything else (Structs, dicts, float) is JSON text in S, since DynamoDB's own maps and numbers
    change some of JSON's. None is no attribute at all.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._encoders: list[tuple[str, _Encode]] = []
        self._decoders: list[tuple[str, _Decode, bool]] = []
        self._fill: dict[str, None] = {}
        """The required fields that may be None."""
        for field in msgspec.structs.fields(kind):
            encode, decode, optional = _converters(field.type)
            self._encoders.append((field.name, encode))
            self._decoders.append((field.name, decode, optional or not field.required))
            if field.required and optional:
                self._fill[field.name] = None

    def encode(self, struct: T) -> RequestItem:
        """The item of a Struct, in the request's form.

        Raises:
            NumberOutOfRange: DynamoDB cannot store one of its numbers.
        """
        item: RequestItem = {}
        for name, encode in self._encoders:
            value = getattr(struct, name)
            if value is not None:
                item[name] = encode(value)
        return item

    def decode(self, item: Mapping[str, AttributeValue]) -> T:
        """The Struct of an item. Unknown attributes are ignored.

        Raises:
            Corrupt: an attribute is missing, of another type, or cannot be read.
        """
        values: dict[str, Any] = dict(self._fill)
        for name, decode, optional in self._decoders:
            value = item.get(name)
            if value is not None and not value.NULL:
                try:
                    values[name] = decode(value)
                except (Corrupt, ValueError) as error:
                    raise Corrupt(f"attribute {name} of a row: {error}") from None
            elif not optional:
                raise Corrupt(f"attribute {name} of a row is missing")
        return self._kind(**values)


def _converters(annotation: Any) -> tuple[_Encode, _Decode, bool]:
    """How a field of this type is written and read, and whether it may be None."""
    kind, optional = _without_none(annotation)
    origin = get_origin(kind)
    if origin is Literal:
        return attribute_of, _literal(get_args(kind)), optional
    if kind in _SCALARS:
        return attribute_of, _SCALARS[kind], optional
    if (origin is list and get_args(kind) == (str,)) or kind == tuple[str, ...]:
        return attribute_of, _texts(origin), optional
    return _json_text, _from_json(kind), optional


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in {Union, UnionType}:
        return annotation, annotation is Any
    members = tuple(part for part in get_args(annotation) if part is not type(None))
    optional = len(members) < len(get_args(annotation))
    return Union[members], optional  # noqa: UP007 - made at run time


def _member(name: str, value: Any) -> Any:
    if value is None:
        raise Corrupt(f"should be of type {name}")
    return value


_SCALARS: dict[Any, _Decode] = {
    str: lambda value: _member("S", value.S),
    bool: lambda value: _member("BOOL", value.BOOL),
    int: lambda value: int_of(_member("N", value.N)),
    bytes: lambda value: _member("B", value.B),
}


def _literal(allowed: tuple[Any, ...]) -> _Decode:
    def decode(value: AttributeValue) -> Any:
        if value.S not in allowed:
            raise Corrupt(f"should be one of {', '.join(allowed)}")
        return value.S

    return decode


def _texts(collection: Any) -> _Decode:
    def decode(value: AttributeValue) -> Any:
        parts: list[AttributeValue] = _member("L", value.L)
        return collection(_member("S", part.S) for part in parts)

    return decode


def _json_text(value: Any) -> RequestValue:
    return {"S": msgspec.json.encode(value).decode()}


def _from_json(kind: Any) -> _Decode:
    decoder = msgspec.json.Decoder(kind)

    def decode(value: AttributeValue) -> Any:
        return decoder.decode(_member("S", value.S))

    return decode
