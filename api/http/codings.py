"""Content codings: gzip and zstd bodies, decoded in steps of bounded memory.

A few hundred bytes can decode to gigabytes. So each step makes a bounded number of bytes, and
decoding ends with the first one that is over the limit of the route.
"""

import zlib
from typing import Final, Protocol

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


class _Member(Protocol):
    """One gzip member or zstd frame."""

    eof: bool
    unused_data: bytes
    """What follows it in the data that it was last given."""

    def step(self, data: bytes) -> bytes:
        """The next bytes, at most `STEP_BYTES`, from `data` and what is left of what came before.

        No bytes: it needs more data, or is over.
        """


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP)
        self.eof = False
        self.unused_data = b""

    def step(self, data: bytes) -> bytes:
        made = self._inner.decompress(self._inner.unconsumed_tail + data, STEP_BYTES)
        self.eof, self.unused_data = self._inner.eof, self._inner.unused_data
        return made


class _Zstd:
    def __init__(self) -> None:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        self._inner = zstd.ZstdDecompressor(options=options)
        self.eof = False
        self.unused_data = b""

    def step(self, data: bytes) -> bytes:
        made = self._inner.decompress(data, STEP_BYTES)
        self.eof = self._inner.eof
        self.unused_data = self._inner.unused_data if self.eof else b""
        return made


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
        member: _Member = _Gzip() if coding == "gzip" else _Zstd()
        while True:
            try:
                made = member.step(rest)
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
