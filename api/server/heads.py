"""Heads of plain searches, read without the parser while the gate refuses.

What is read so is the usual form of a search alone. All else is for the parser, so that both never
differ in where a request ends.
"""

import re
from typing import Final

import msgspec

BODY_BYTES_MAX: Final = 64 * 1024
"""Of a body that is dropped as it comes; a request with more is for the parser."""
_HEAD_BYTES_MAX: Final = 16 * 1024
_FIELDS_MAX: Final = 64
_LENGTH_DIGITS_MAX: Final = 6
_LINE_END: Final = b"\r\n"
_END: Final = b"\r\n\r\n"
_VISIBLE: Final = bytes(range(0x20, 0x7F))

_FIRST_LINE: Final = re.compile(rb"POST /models/[\w.~%-]+/search HTTP/1\.1")
_NAMES: Final = re.compile(rb"[\w!#$%&'*+.^`|~-]+")
_FRAMING: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})
"""Fields that may have a request, or its connection, end elsewhere."""
_KEPT: Final = frozenset({b"", b"keep-alive", b"Keep-Alive"})
"""Values of `Connection` that say what holds without them."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """The head of a plain search."""

    fields: dict[bytes, bytes]
    """By name in lower case; values as they were sent, with the space before them."""
    total: int
    """Bytes of the request, with its body."""

    def value(self, name: bytes) -> bytes:
        """The value of a field, whose name is in lower case; empty where there is none."""
        return self.fields.get(name, b"").strip(b" ")


def plain_head(data: bytes) -> Head | None:
    """The head of the plain search that the data begins with; None where it is anything else."""
    end = data.find(_END, 0, _HEAD_BYTES_MAX)
    if end < 0:
        return None
    text = data[:end]
    first, *lines = text.split(_LINE_END)
    if (
        _FIRST_LINE.fullmatch(first) is None
        or len(lines) > _FIELDS_MAX
        or text.translate(None, _VISIBLE) != _LINE_END * len(lines)
    ):
        return None
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name:
            return None
        fields[name.lower()] = value
    if (
        len(fields) != len(lines)  # one came twice
        or b"host" not in fields
        or not _FRAMING.isdisjoint(fields)
        or _NAMES.fullmatch(b"".join(fields)) is None
        or fields.get(b"connection", b"").strip(b" ") not in _KEPT
    ):
        return None
    length = fields.get(b"content-length", b"").strip(b" ")
    if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX or int(length) > BODY_BYTES_MAX:
        return None
    return Head(fields, end + len(_END) + int(length))
