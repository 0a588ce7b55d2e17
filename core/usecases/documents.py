"""JSON kept as text, so that it comes back exactly: checked, and merged without reading a number.

A number in JSON may have any size and any digits; Python's and DynamoDB's do not. So members are
taken apart only where a patch says so, and everything else stays the bytes that were sent.
"""

import re
from typing import Final

import msgspec

from core.errors import Unreadable

# Runs of plain characters are matched as one: by the character, 56 KiB take 3 ms.
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[\]{}]")
_TOKENS: Final = re.compile(_STRING.pattern + rb"|[\[\]{},:]", re.DOTALL)
_SPACE: Final = b" \t\r\n"


def is_object(text: bytes) -> bool:
    """Whether a JSON value is an object."""
    return text.lstrip(_SPACE)[:1] == b"{"


def is_null(text: bytes) -> bool:
    """Whether a JSON value is null."""
    return text.strip(_SPACE) == b"null"


def levels(text: bytes) -> int:
    """How deep a JSON value nests: 1 for `{}`, 2 for `{"a": []}`."""
    deepest = depth = 0
    for bracket in _BRACKETS.findall(_STRING.sub(b"", text)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def check_text(text: bytes) -> None:
    """Holds a JSON value that msgspec passed over to the one rule that it does not look at there.

    Raises:
        Unreadable: it is not UTF-8.
    """
    try:
        text.decode()
    except UnicodeDecodeError:
        raise Unreadable("the body holds text that is not UTF-8") from None


def merge_patch(target: bytes, patch: bytes) -> bytes:
    """A JSON merge patch (RFC 7396): members are replaced, those that are null removed.

    Takes time in proportion to both texts, however deep they nest.

    Args:
        target: The JSON value as it is.
        patch: What to make of it.
    """
    if not is_object(patch):
        return patch.strip(_SPACE)
    pieces: list[bytes] = []
    _merge(_parsed(target) if is_object(target) else None, _parsed(patch), pieces)
    return b"".join(pieces)


class _Object:
    """An object of a JSON text: its members are objects, or the text of any other value."""

    __slots__ = ("end", "members", "start", "text")

    def __init__(self, text: bytes, start: int) -> None:
        self.text = text
        self.start = start
        self.end = start
        self.members: dict[str, _Object | bytes] = {}


def _parsed(text: bytes) -> _Object:  # noqa: C901 - one branch a kind of token
    """The object that a JSON text is. Objects inside of arrays are left as text."""
    around: list[tuple[_Object, str]] = []
    current, name, begun = _Object(text, 0), "", 0
    value: _Object | bytes | None = None
    at_name = False
    nested = 0
    for match in _TOKENS.finditer(text):
        at, token = match.start(), text[match.start()]
        if nested:
            nested += (token in b"[{") - (token in b"]}")
        elif token in b"{":
            if at_name or begun:
                around.append((current, name))
            current, at_name, value = _Object(text, at), True, None
        elif token in b"[":
            nested = 1
        elif token in b'"':
            if at_name:
                name = msgspec.json.decode(match.group(), type=str)
        elif token in b":":
            begun, at_name = match.end(), False
        else:
            if not at_name:
                current.members[name] = text[begun:at].strip(_SPACE) if value is None else value
            value, at_name = None, True
            if token in b"}":
                current.end = match.end()
                if around:
                    value, at_name = current, False
                    current, name = around.pop()
    return current


def _merge(target: _Object | bytes | None, patch: _Object, pieces: list[bytes]) -> None:
    """Appends the text of the target with the patch applied."""
    before = target.members if isinstance(target, _Object) else {}
    merged: dict[str, _Object | bytes] = {**before, **patch.members}
    separator = b"{"
    for name, value in merged.items():
        if name in patch.members and value == b"null":
            continue
        pieces += (separator, msgspec.json.encode(name), b":")
        separator = b","
        if isinstance(value, bytes):
            pieces.append(value)
        elif name in patch.members:
            _merge(before.get(name), value, pieces)
        else:
            pieces.append(value.text[value.start : value.end])
    pieces.append(b"{}" if separator == b"{" else b"}")
