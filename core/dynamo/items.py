"""Struct ↔ item: how a domain Struct is stored in DynamoDB, with exact numbers both ways."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from types import UnionType
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import numpy as np

from core.dynamo.wire import AttributeValue, RequestItem, RequestValue, request_value
from core.errors import Corrupt, NumberOutOfRange

T = TypeVar("T", bound=msgspec.Struct)

DIGITS_MAX: Final = 38
"""Significant digits of a number in DynamoDB."""
EXPONENT_MIN: Final = -130
"""A number's magnitude is 0, or from 1e-130 on."""
EXPONENT_MAX: Final = 125
"""Exponent of the first digit of the largest number, 9.99…e125."""
_INT_BITS_MAX: Final = 420
"""No integer of more bits is in range; longer ones are refused before any of their digits."""
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)


def number_text(number: float | Decimal) -> str:
    """A number as DynamoDB takes it, exact.

    Raises:
        NumberOutOfRange: not finite, over 38 significant digits, or of a magnitude outside
            1e-130 to 9.99…e125.
    """
    if isinstance(number, int):
        if -(10**DIGITS_MAX) < number < 10**DIGITS_MAX:
            return str(int(number))
        if number.bit_length() > _INT_BITS_MAX:
            raise NumberOutOfRange("a number is over 9.99e125, the largest that DynamoDB stores")
    # numpy's float64 is a float too, with a repr that is no number.
    text = float.__repr__(number) if isinstance(number, float) else str(number)
    _check_range(Decimal(text))
    return text


def _check_range(number: Decimal) -> None:
    if not number.is_finite():
        raise NumberOutOfRange("a number is infinite or not a number at all")
    if number.is_zero():
        return
    digits = number.as_tuple().digits
    significant = len("".join(map(str, digits)).strip("0"))
    if significant > DIGITS_MAX:
        raise NumberOutOfRange(
            f"a number has {significant} significant digits; DynamoDB stores {DIGITS_MAX}"
        )
    if not EXPONENT_MIN <= number.adjusted() <= EXPONENT_MAX:
        raise NumberOutOfRange("a number's magnitude is outside 1e-130 to 9.99e125")


def decimal_of(text: str) -> Decimal:
    """A number as DynamoDB gives it, exact.

    Raises:
        Corrupt: it is no number.
    """
    if not _NUMBER.fullmatch(text):
        raise Corrupt("a stored number cannot be read")
    return Decimal(text)


def int_of(text: str) -> int:
    """A number that must be whole.

    Raises:
        Corrupt: it is no number, or not whole.
    """
    try:
        return int(text)
    except ValueError:
        number = decimal_of(text)
    whole = number.to_integral_value() if number.adjusted() <= EXPONENT_MAX else None
    if whole is None or whole != number:
        raise Corrupt("a stored number should be whole and is not")
    return int(whole)


def attribute_of(value: Any) -> RequestValue:
    """A plain value, or one as it came off the wire, in the request's form.

    str, int, float, Decimal, bool, bytes, None, and lists and dicts of them. Lists become L.

    Raises:
        NumberOutOfRange: DynamoDB cannot store the number.
        TypeError: it is of no type that DynamoDB knows.
    """
    for kinds, form in _FORMS:
        if isinstance(value, kinds):
            return form(value)
    raise TypeError(f"DynamoDB cannot store a {type(value).__name__}")


_FORMS: Final[tuple[tuple[Any, Callable[[Any], RequestValue]], ...]] = (
    (str, lambda value: {"S": value}),
    (bool, lambda value: {"BOOL": value}),  # before int, which it is one of
    ((int, float, Decimal), lambda value: {"N": number_text(value)}),
    ((bytes, bytearray, memoryview), lambda value: {"B": bytes(value)}),
    (type(None), lambda _: {"NULL": True}),
    (AttributeValue, request_value),
    (Mapping, lambda value: {"M": {str(name): attribute_of(v) for name, v in value.items()}}),
    ((list, tuple), lambda value: {"L": [attribute_of(part) for part in value]}),
)


def plain_of(value: AttributeValue) -> Any:
    """The inverse of `attribute_of`; a number is an int where it is written as one, else Decimal.

    Raises:
        Corrupt: none of its members is set, or a number cannot be read.
    """
    for member, plain in _PLAIN.items():
        content = getattr(value, member)
        if content is not None:
            return plain(content)
    raise Corrupt("a stored value is of an unknown type")


def _unchanged(content: Any) -> Any:
    return content


_PLAIN: Final[dict[str, Callable[[Any], Any]]] = {
    "S": _unchanged,
    "N": lambda text: _plain_number(text),  # noqa: PLW0108 - defined below
    "B": _unchanged,
    "BOOL": _unchanged,
    "NULL": lambda _: None,
    "M": lambda parts: {name: plain_of(part) for name, part in parts.items()},
    "L": lambda parts: [plain_of(part) for part in parts],
    "SS": set,
    "NS": lambda texts: {_plain_number(text) for text in texts},
    "BS": set,
}


def _plain_number(text: str) -> int | Decimal:
    return int(text) if text.lstrip("-").isdecimal() else decimal_of(text)


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
    """Turns one type of Struct into items and back.

    A field is an attribute of its name, or of the name that `rename` gives it. By its type:
    str and Literal are S; int, float and Decimal N; bool BOOL; bytes B (or, when read, an older
    list of numbers, as float32 bytes); a list or tuple of str L of S; anything else (Structs,
    dicts, Any) is JSON text in S, since DynamoDB's own maps change some of JSON's numbers. None
    is no attribute at all.
    """

    def __init__(self, kind: type[T], *, rename: Mapping[str, str] | None = None) -> None:
        renamed = rename or {}
        fields = msgspec.structs.fields(kind)
        self._kind = kind
        self.names: dict[str, str] = {f.name: renamed.get(f.name, f.name) for f in fields}
        """Field → attribute."""
        self._encoders: list[tuple[str, str, _Encode]] = []
        self._decoders: list[tuple[str, str, _Decode, bool]] = []
        for field in fields:
            encode, decode, optional = _converters(field.type)
            attribute = self.names[field.name]
            self._encoders.append((field.name, attribute, encode))
            self._decoders.append((field.name, attribute, decode, optional or not field.required))
        self._fill = {
            field.name: None for field in fields if field.required and _converters(field.type)[2]
        }

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes of the Struct's fields, for a projection."""
        return tuple(self.names.values())

    def encode(self, struct: T) -> RequestItem:
        """The item of a Struct, in the request's form.

        Raises:
            NumberOutOfRange: DynamoDB cannot store one of its numbers.
        """
        item: RequestItem = {}
        for name, attribute, encode in self._encoders:
            value = getattr(struct, name)
            if value is not None:
                item[attribute] = encode(value)
        return item

    def changes(self, **fields: Any) -> dict[str, AttributeValue | None]:
        """Some fields by attribute, each as `encode` would write it: for `Update(set=...)`.

        A field of None stays None, which there removes the attribute.

        Raises:
            NumberOutOfRange: DynamoDB cannot store one of the numbers.
            TypeError: the Struct has no such field.
        """
        unknown = fields.keys() - self.names.keys()
        if unknown:
            raise TypeError(f"{self._kind.__name__} has no field {', '.join(sorted(unknown))}")
        return {
            attribute: None
            if fields[name] is None
            else msgspec.convert(encode(fields[name]), AttributeValue)
            for name, attribute, encode in self._encoders
            if name in fields
        }

    def decode(self, item: Mapping[str, AttributeValue]) -> T:
        """The Struct of an item. Unknown attributes are ignored.

        Raises:
            Corrupt: an attribute is missing, of another type, or cannot be read.
        """
        values: dict[str, Any] = dict(self._fill)
        for name, attribute, decode, optional in self._decoders:
            value = item.get(attribute)
            if value is not None and not value.NULL:
                try:
                    values[name] = decode(value)
                except (Corrupt, ValueError, InvalidOperation) as error:
                    raise Corrupt(f"attribute {attribute} of a row: {error}") from None
            elif not optional:
                raise Corrupt(f"attribute {attribute} of a row is missing")
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
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) not in {Union, UnionType}:
        return annotation, annotation is Any
    members = tuple(part for part in get_args(annotation) if part is not type(None))
    optional = len(members) < len(get_args(annotation))
    return Union[members], optional  # noqa: UP007 - made at run time


def _member(name: str, value: Any) -> Any:
    if value is None:
        raise Corrupt(f"should be of type {name}")
    return value


def _float(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise Corrupt("a stored number cannot be read")
    return float(text)


def _bytes(value: AttributeValue) -> bytes:
    return value.B if value.B is not None else float32_bytes(value)


_SCALARS: dict[Any, _Decode] = {
    str: lambda value: _member("S", value.S),
    bool: lambda value: _member("BOOL", value.BOOL),
    int: lambda value: int_of(_member("N", value.N)),
    float: lambda value: _float(_member("N", value.N)),
    Decimal: lambda value: decimal_of(_member("N", value.N)),
    bytes: _bytes,
}


def _literal(allowed: tuple[Any, ...]) -> _Decode:
    def decode(value: AttributeValue) -> Any:
        plain = plain_of(value)
        if plain not in allowed:
            raise Corrupt(f"should be one of {', '.join(map(str, allowed))}")
        return plain

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
