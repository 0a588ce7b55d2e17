"""Bodies → wire Structs, from JSON and msgpack.

What cannot be read is `Unreadable` (400); what reads and is not valid is `Invalid` (422), with the
path of the field. msgspec stops at the first thing that does not fit a type, before the rest is
looked at, so that a body which fails is then skimmed once more: only if all of it reads is it 422.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Raw

from api.admission.executor import Steps
from core.errors import FieldError, Invalid, K9Error, Unreadable

T = TypeVar("T")

_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_REQUIRED: Final = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)
_MESSAGE_CHARACTERS_MAX: Final = 200
_COUNTED_BYTES: Final = 4 << 20
LARGE_BYTES: Final = 64 * 1024
"""Bodies over it are decoded in a thread, vector by vector, to let the event loop have its turn."""

_skim_json: Final = msgspec.json.Decoder(Raw)
_skim_msgpack: Final = msgspec.msgpack.Decoder(Raw)


class BodyDecoder(Generic[T]):
    """Decodes one kind of body: one Struct from JSON, one from msgpack, with vectors as bytes."""

    def __init__(self, json: type[T], msgpack: type[T] | None = None) -> None:
        self._json: Callable[[Any], T] = msgspec.json.Decoder(json).decode
        self._msgpack: Callable[[Any], T] = msgspec.msgpack.Decoder(msgpack or json).decode

    def decode(self, data: bytes | Raw, *, msgpack: bool, at: str = "") -> T:
        """The Struct.

        Args:
            data: The body, or a part of one.
            msgpack: What it is written in, if not JSON.
            at: Where in the body the part is, for `errors[]`.

        Raises:
            Unreadable: it is not JSON or msgpack, is cut short, or nests too deep.
            Invalid: it has an unknown or missing field, or a value of another type.
        """
        try:
            return self._msgpack(data) if msgpack else self._json(data)
        except (ValueError, RecursionError) as error:
            raise _translated(error, data, at, msgpack=msgpack) from None


@cache
def body_decoder(kind: type[T]) -> BodyDecoder[T]:
    """The decoder of a Struct that is the same in both formats."""
    return BodyDecoder(kind)


def count_parts(data: bytes, most: int) -> Steps[None]:
    """Refuses a JSON body of far too many parts before any of them is made.

    msgspec makes all entries of a list before it counts them, at 70 bytes each. Commas inside of
    strings are counted too: `most` leaves room for them.

    Raises:
        Invalid: there are more parts than any good body has.
    """
    parts = 1
    for start in range(0, len(data), _COUNTED_BYTES):
        if start:
            yield 0
        parts += data.count(b",", start, start + _COUNTED_BYTES)
    if parts > most:
        message = f"has {parts} parts, the most is {most}"
        raise Invalid(f"the body {message}", (FieldError("body", message),))


def _translated(error: Exception, data: bytes | Raw, at: str, *, msgpack: bool) -> K9Error:
    if isinstance(error, msgspec.ValidationError):
        try:
            (_skim_msgpack if msgpack else _skim_json).decode(data)
        except (ValueError, RecursionError) as worse:
            error = worse
        else:
            found = _field_error(str(error), at)
            return Invalid(f"{found.field}: {found.message}", (found,))
    name = "msgpack" if msgpack else "JSON"
    if isinstance(error, RecursionError):
        return Unreadable(f"the body nests too deep to be read as {name}")
    if isinstance(error, UnicodeDecodeError):
        return Unreadable("the body holds text that is not UTF-8")
    reason = _cut(str(error)).removeprefix("JSON is malformed: ")
    return Unreadable(f"the body cannot be read as {name}: {reason}")


def _field_error(message: str, at: str) -> FieldError:
    """A sentence of msgspec, taken apart: `Expected `int`, got `str` - at `$.k`` is about `k`."""
    match = _AT.match(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    for pattern, verdict in ((_UNKNOWN, "is not a field here"), (_REQUIRED, "is missing")):
        if named := pattern.match(what):
            path = f"{path}.{named['name']}" if path else named["name"]
            what = verdict
    return FieldError(_cut(_joined(at, path)) or "body", _cut(what))


def _joined(at: str, path: str) -> str:
    if not at or not path:
        return at or path
    return at + path if path.startswith("[") else f"{at}.{path}"


def _cut(text: str) -> str:
    """Short enough to send back: an unknown field's name is the caller's, and may be long."""
    printable = "".join(c if c.isprintable() else "?" for c in text[:_MESSAGE_CHARACTERS_MAX])
    return printable if len(text) <= _MESSAGE_CHARACTERS_MAX else f"{printable}…"
