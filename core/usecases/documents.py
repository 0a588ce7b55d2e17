"""JSON kept as text, so that it comes back exactly: checked, and merged without reading a number.

A number in JSON may have any size and any digits; Python's and DynamoDB's do not. So members are
taken apart only where a patch says so, and everything else stays the bytes that were sent.
"""

import re
from typing import Any, Final

import msgspec
from msgspec import Raw

from core.errors import Unreadable

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS: Final = re.compile(rb"[\[\]{}]")
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])
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

    Args:
        target: The JSON value as it is.
        patch: What to make of it.
    """
    if not is_object(patch):
        return patch.strip(_SPACE)
    members: dict[str, Any] = dict(_MEMBERS.decode(target)) if is_object(target) else {}
    for name, value in _MEMBERS.decode(patch).items():
        if is_null(bytes(value)):
            members.pop(name, None)
        else:
            members[name] = Raw(merge_patch(bytes(members.get(name, b"null")), bytes(value)))
    return msgspec.json.encode(members)
