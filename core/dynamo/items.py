"""Struct ↔ item: how a domain Struct is stored in DynamoDB, and exact whole numbers."""

from collections.abc import Mapping
from contextlib import suppress
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from types import NoneType, UnionType
from typing import Any, Final, Generic, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import numpy as np

from core.dynamo.wire import AttributeValue, RequestItem, RequestValue, request_value
from core.errors import Corrupt, NumberOutOfRange
from core.formats import ATTRIBUTE, ROWS, check_format

T = TypeVar("T", bound=msgspec.Struct)

_EXPONENT_MAX: Final = 125
"""Exponent of the first digit of the largest number, 9.99…e125."""
_NUMBERS: Final = Context(prec=38, Emax=_EXPONENT_MAX, traps=[Inexact, Overflow])
"""The numbers that DynamoDB stores."""


def number_text(number: int) -> str:
    """A whole number as DynamoDB takes it, exact.

    Raises:
        NumberOutOfRange: over 9.99…e125, or of more than 38 significant digits.
    """
    try:
        _NUMBERS.create_decimal(number)
    except (Inexact, Overflow):
        raise NumberOutOfRange(
            "DynamoDB stores numbers to 9.99e125, of up to 38 significant digits"
        ) from None
    return str(number)


def int_of(text: str) -> int:
    """A number that must be whole.

    Raises:
        Corrupt: it is no number, or not whole.
    """
    try:
        return int(text)
    except ValueError:
        with suppress(InvalidOperation, OverflowError):  # of what is no number, and of infinity
            number = Decimal(text)
            if number.adjusted() <= _EXPONENT_MAX and number == number.to_integral_value():
                return int(number)
    raise Corrupt("a stored number cannot be read, or should be whole and is not")


def check_row(item: Mapping[str, AttributeValue], what: str) -> None:
    """Refuses a row of a later release.

    Raises:
        NewerFormat: its format is not known.
        Corrupt: its format is no whole number.
    """
    stored = item.get(ATTRIBUTE)
    if stored is not None:
        check_format(int_of(stored.N or ""), ROWS, what)


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


_DIRECT = frozenset({str, int, bool, bytes, list[str], tuple[str, ...]})


class Codec(Generic[T]):
    """Turns one type of Struct into items and back; a field is the attribute of its name.

    By its type: str and Literal are S; int N; bool BOOL; bytes B; a list or tuple of str L of S;
    anything else (Structs, dicts, float) is JSON text in S, since DynamoDB's own maps and numbers
    change some of JSON's. None is no attribute at all.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._name = f"a stored {kind.__name__.strip('_').lower()}"
        self._decoders: dict[str, msgspec.json.Decoder[Any] | None] = {}
        """Field → decoder of its JSON text; None where the attribute is the value itself."""
        msgspec.json.Decoder(kind)  # makes ready what `convert` needs, before any thread does
        self._none: dict[str, None] = {}
        """The required fields that may be None."""
        for field in msgspec.structs.fields(kind):
            union = get_origin(field.type) in {Union, UnionType}
            kinds = get_args(field.type) if union else (field.type,)
            direct = all(
                each in _DIRECT or each is NoneType or get_origin(each) is Literal for each in kinds
            )
            self._decoders[field.name] = None if direct else msgspec.json.Decoder(field.type)
            if field.required and NoneType in kinds:
                self._none[field.name] = None

    def encode(self, struct: T) -> RequestItem:
        """The item of a Struct, in the request's form.

        Raises:
            NumberOutOfRange: DynamoDB cannot store one of its numbers.
        """
        return {
            name: attribute_of(msgspec.json.encode(value).decode() if decoder else value)
            for name, decoder in self._decoders.items()
            if (value := getattr(struct, name)) is not None
        }

    def decode(self, item: Mapping[str, AttributeValue]) -> T:
        """The Struct of an item. Unknown attributes are ignored.

        Raises:
            Corrupt: an attribute is missing, of another type, or cannot be read.
            NewerFormat: a later release wrote it.
        """
        check_row(item, self._name)
        values: dict[str, Any] = dict(self._none)
        for name, decoder in self._decoders.items():
            value = item.get(name)
            if value is None or value.NULL:
                continue
            try:
                values[name] = decoder.decode(value.S or "") if decoder else _plain(value)
            except (Corrupt, ValueError) as error:
                raise Corrupt(f"attribute {name} of a row: {error}") from None
        try:
            return msgspec.convert(values, self._kind, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise Corrupt(f"a row cannot be read: {error}") from None


def _plain(value: AttributeValue) -> Any:
    """The value of an attribute, of whichever type it is."""
    if value.S is not None:
        return value.S
    if value.N is not None:
        return int_of(value.N)
    if value.L is not None:
        return [_plain(part) for part in value.L]
    if value.BOOL is not None:
        return value.BOOL
    return value if value.B is None else value.B
