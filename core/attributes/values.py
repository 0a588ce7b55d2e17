"""The attributes of an embedding: what may be in them, how they are stored, and merge patches.

They are stored as JSON text, since DynamoDB's numbers hold not every finite float64.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from core.errors import Corrupt, FieldError
from core.limits import (
    ATTRIBUTE_CHARACTERS_MAX,
    ATTRIBUTE_LIST_MAX,
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_MAX,
)

Value = str | float | int | bool | list[str]
"""One value. A whole number that float64 does not hold exactly is not valid."""
Attributes = dict[str, Value]
AttributesPatch = dict[str, Value | None]
"""A merge patch (RFC 7396); None removes a name."""

NAME: Final = r"[A-Za-z0-9_-]{1,64}"
"""The pattern of a name."""

NOT_A_NAME: Final = "is no name of an attribute: 1 to 64 of A-Z a-z 0-9 _ -"
UNAVAILABLE: Final = "is not available to this caller"
"""The error of a name that readers alone may ask by or get."""

_NAME: Final = re.compile(NAME, re.ASCII)
_EXACT_MAX: Final = 1 << 53
_INTEGER_MIN: Final = -(1 << 63)
_INTEGER_MAX: Final = (1 << 64) - 1
_encode: Final = msgspec.json.Encoder().encode
_encode_sorted: Final = msgspec.json.Encoder(order="sorted").encode
_decode: Final = msgspec.json.Decoder(Attributes).decode


def is_name(text: str) -> bool:
    """Whether an attribute may have this name."""
    return bool(_NAME.fullmatch(text))


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: a JSON escape may have been a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def attribute_problems(
    attributes: Mapping[str, Any], at: str = "attributes", *, removals: bool = False
) -> list[FieldError]:
    """What is wrong with attributes that came from outside: empty where they are valid.

    `at` is the place of the object in the input. `removals` allows None, as in a merge patch, for
    as many names besides.
    """
    given = attributes
    if removals:
        given = {name: value for name, value in attributes.items() if value is not None}
    for does, count in (("has", len(given)), ("removes", len(attributes) - len(given))):
        if count > ATTRIBUTES_MAX:
            return [FieldError(at, f"{does} {count} names, the most is {ATTRIBUTES_MAX}")]
    problems = []
    for name, value in attributes.items():
        if not is_name(name):
            shown = name[:80].encode(errors="backslashreplace").decode()
            problem = f"{shown!r} {NOT_A_NAME}"
            problems.append(FieldError(at, problem))
        elif value is not None or not removals:
            why = _value_problem(value)
            if why:
                problems.append(FieldError(f"{at}.{name}", why))
    if not problems and (size := len(_encode(given))) > ATTRIBUTES_BYTES_MAX:
        problem = f"has {size} bytes as JSON, the most is {ATTRIBUTES_BYTES_MAX}"
        problems.append(FieldError(at, problem))
    return problems


def merge(attributes: Attributes, patch: AttributesPatch) -> Attributes:
    """The attributes after a merge patch; the result may be over the limits."""
    merged: AttributesPatch = {**attributes, **patch}
    return _with_small_integers(
        {name: value for name, value in merged.items() if value is not None}
    )


def encode_attributes(attributes: Attributes) -> str:
    """Valid attributes as they are stored."""
    return _encode(attributes).decode()


def canonical_text(attributes: Mapping[str, Value]) -> bytes:
    """Valid attributes as JSON with sorted names, the same for equal ones; empty for none."""
    return _encode_sorted(attributes) if attributes else b""


def decode_attributes(stored: str | bytes) -> Attributes:
    """The attributes of a stored text.

    Raises:
        Corrupt: they cannot be read.
    """
    try:
        return _with_small_integers(_decode(stored))
    except (msgspec.DecodeError, RecursionError) as error:
        raise Corrupt(f"stored attributes cannot be read: {error}") from None


def checked_attributes(stored: bytes) -> Attributes:
    """The attributes of a stored text, every one of which is within the limits.

    Raises:
        Corrupt: they cannot be read, or are none that K9 would have stored.
    """
    attributes = decode_attributes(stored)
    problems = attribute_problems(attributes)
    if problems:
        raise Corrupt(f"stored attributes are not valid: {problems[0].field} {problems[0].message}")
    return attributes


def _with_small_integers(attributes: Attributes) -> Attributes:
    """The same, with floats for whole numbers beyond msgpack's integers of 64 bits."""
    for name, value in attributes.items():
        if isinstance(value, int) and not _INTEGER_MIN <= value <= _INTEGER_MAX:
            # One that K9 would not have stored stays, for whoever checks it.
            attributes[name] = float(value) if _is_exact(value) else value
    return attributes


def _value_problem(value: object) -> str | None:
    if isinstance(value, str):
        return _text_problem(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if abs(value) <= _EXACT_MAX or _is_exact(value) else _NO_FLOAT
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not a finite number"
    if isinstance(value, list):
        return _list_problem(value)
    return "is not a string, number, boolean or list of strings"


_NO_FLOAT: Final = "is no number that float64 holds exactly; send it as a string"


def _is_exact(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _text_problem(text: str) -> str | None:
    if len(text) > ATTRIBUTE_CHARACTERS_MAX:
        return f"has {len(text)} characters, the most is {ATTRIBUTE_CHARACTERS_MAX}"
    if not is_unicode(text):
        return "is not valid Unicode"
    return None


def _list_problem(texts: list[Any]) -> str | None:
    if len(texts) > ATTRIBUTE_LIST_MAX:
        return f"has {len(texts)} strings, the most is {ATTRIBUTE_LIST_MAX}"
    for position, text in enumerate(texts):
        why = _text_problem(text) if isinstance(text, str) else "is not a string"
        if why:
            return f"has an entry that is not valid: [{position}] {why}"
    return None
