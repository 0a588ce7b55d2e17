"""Content codings: gzip and zstd bodies, decoded in steps of bounded memory.

A few hundred bytes can decode to gigabytes. So each step makes a bounded number of bytes, and
decoding ends with the first one that is over the limit of the route.
"""

import zlib
from collections.abc import Callable
from typing import Any, Final

from backports import zstd

from api.admission.executor import Steps
from api.http.negotiation import Coding
from core.errors import TooLarge, Unreadable

STEP_BYTES: Final = 512 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
_PIECE_BYTES: Final = 64 * 1024
"""Of the body at a time: what follows a member is copied, once a member."""
_MEMBERS_MAX: Final = 4096
_WINDOW_LOG_MAX: Final = 23
"""RFC 9659: a window of 8 MiB at the most, which is the memory that decoding takes."""


_Decoder = tuple[Any, Callable[[bytes], bytes]]
"""Of one gzip member or zstd frame: with `eof` and `unused_data`, and its next step, which makes at
most `STEP_BYTES` of what it is given and what is left of before. No bytes: it needs more, or ends.
"""


def _gzip() -> _Decoder:
    member = zlib.decompressobj(_GZIP)
    return member, lambda data: member.decompress(member.unconsumed_tail + data, STEP_BYTES)


def _zstd() -> _Decoder:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
    member = zstd.ZstdDecompressor(options=options)
    return member, lambda data: member.decompress(data, STEP_BYTES)


def decoded(data: bytes, coding: Coding, bytes_max: int) -> Steps[bytes]:
    """The body without its coding; yields the bytes that each step has made.

    Raises:
        TooLarge: it decodes to more than so many bytes.
        Unreadable: it is not of that coding, cut short, or in very many members.
    """
    parts: list[bytes] = []
    size = 0
    rest = b""
    place = 0
    for _ in range(_MEMBERS_MAX):
        member, step = _gzip() if coding == "gzip" else _zstd()
        while True:
            try:
                made = step(rest)
            except (zlib.error, zstd.ZstdError):
                raise Unreadable(f"the body cannot be read as {coding}") from None
            rest = b""
            if made:
                size += len(made)
                if size > bytes_max:
                    raise TooLarge(f"the decoded body is over the limit of {bytes_max} bytes")
                parts.append(made)
                yield len(made)
            if member.eof:
                rest = member.unused_data
                break
            if not made:
                rest = data[place : place + _PIECE_BYTES]
                place += len(rest)
                if not rest:
                    raise Unreadable(f"the body is cut short, read as {coding}")
        if not rest and place == len(data):
            return b"".join(parts)
    raise Unreadable(f"the body has over {_MEMBERS_MAX} members of {coding}")
