"""Attributes as they come over the wire → values that the use case checks."""

from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType

from api.wire.decoding import BodyDecoder
from core.errors import FieldError, Invalid
from core.limits import ATTRIBUTES_BYTES_MAX

_ENCODED_BYTES_MAX: Final = 8 * ATTRIBUTES_BYTES_MAX
"""Of all, as they are sent. The limit holds for compact JSON; escapes take six bytes a character,
and spaces are the sender's. What is longer is refused before any of it is made."""

_members: Final[BodyDecoder[dict[str, Raw]]] = BodyDecoder(dict[str, Raw])
_value: Final[BodyDecoder[Any]] = BodyDecoder[Any](Any)


def sent_attributes(wire: Raw | UnsetType, at: str, *, msgpack: bool) -> dict[str, Any] | None:
    """The attributes that were sent, not checked beyond being an object; None where none were.

    Args:
        wire: An object, still encoded.
        at: where in the body it is.
        msgpack: what it is encoded in, if not in JSON.

    Raises:
        Unreadable: it cannot be read.
        Invalid: it is no object, holds a number that is too large, or is far too long.
    """
    if wire is UNSET:
        return None
    size = len(memoryview(wire))
    if size > _ENCODED_BYTES_MAX:
        message = f"has {size} bytes, the most is {ATTRIBUTES_BYTES_MAX} as compact JSON"
        raise Invalid.of(FieldError(at, message))
    return {
        name: _value.decode(value, msgpack=msgpack, at=f"{at}.{name}")
        for name, value in _members.decode(wire, msgpack=msgpack, at=at).items()
    }
