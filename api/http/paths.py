"""Paths: an escaped slash belongs to its segment, and survives routing.

A router that sees decoded paths takes the `%2F` of a product id for a slash. So the path that is
routed is decoded, but for `/` and `%` inside a segment, which stay as `%2F` and `%25`; handlers
undo that with `unescape`.
"""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from core.errors import Unreadable

_MALFORMED: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
PATH_BYTES_MAX: Final = 8192


def routed_path(raw_path: bytes) -> str:
    """The path to route by, from the path as it came over the wire.

    Raises:
        Unreadable: an escape is malformed, or the bytes are no UTF-8.
    """
    if len(raw_path) > PATH_BYTES_MAX:
        raise Unreadable(f"the path is longer than {PATH_BYTES_MAX} bytes")
    if _MALFORMED.search(raw_path):
        raise Unreadable("the path has a percent sign that escapes nothing; write it as %25")
    try:
        if b"%" not in raw_path:
            return raw_path.decode()
        return "/".join(_segment(part) for part in raw_path.split(b"/"))
    except UnicodeDecodeError:
        raise Unreadable("the path is not UTF-8") from None


def _segment(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode().replace("%", "%25").replace("/", "%2F")


def unescape(segment: str) -> str:
    """What the client meant by a segment of a routed path."""
    if "%" not in segment:
        return segment
    return segment.replace("%2F", "/").replace("%25", "%")
