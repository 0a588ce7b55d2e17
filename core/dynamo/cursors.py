"""Cursors: the position in a list, sealed, so that only we can read or make one.

A `LastEvaluatedKey` holds keys of rows, other callers' too, and a caller could write one that
points anywhere. So a cursor is encrypted and authenticated (AES-256-GCM), bound to the caller and
the query it was made for, and expires.
"""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from secrets import token_bytes
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.errors import SettingsError, Unreadable

PageKey = dict[str, str | int]
"""The key attributes of the last row of a page."""

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_TAG_BYTES: Final = 16
CURSOR_CHARACTERS_MAX: Final = 8192
"""Longer texts are refused unread; the longest key of a row is 3 KB."""
_REFUSED: Final = "the cursor is not valid; start again without it"


class _Sealed(msgspec.Struct, array_like=True):
    expires_at_s: int
    position: dict[str, str | int]


class Cursors:
    """Seals and opens cursors. The first key seals, every key opens: keys can be rotated."""

    def __init__(
        self, keys: Sequence[str], ttl_s: int, *, now: Callable[[], float] = time.time
    ) -> None:
        """Takes AES-256 keys in base64, and how long a cursor is valid, in seconds.

        Without a key one is made, and cursors of another process or of an earlier run do not open.

        Raises:
            SettingsError: a key is not 32 bytes of base64.
        """
        self._ciphers = [AESGCM(key) for key in map(cipher_key, keys)] or [
            AESGCM(token_bytes(_KEY_BYTES))
        ]
        self._ttl_s = ttl_s
        self._now = now
        self._decoder = msgspec.msgpack.Decoder(_Sealed)

    def seal(self, position: Mapping[str, str | int], *, caller: str, query: str) -> str:
        """A cursor for this position, in characters that need no escaping in a query string.

        `query` is all that defines the list: its route, model version, filters.
        """
        nonce = token_bytes(_NONCE_BYTES)
        sealed = _Sealed(int(self._now()) + self._ttl_s, dict(position))
        plain = msgspec.msgpack.encode(sealed)
        closed = self._ciphers[0].encrypt(nonce, plain, _bound_to(caller, query))
        return urlsafe_b64encode(_VERSION + nonce + closed).rstrip(b"=").decode()

    def open(self, text: str, *, caller: str, query: str) -> PageKey:
        """The position that was sealed for this caller and query.

        Raises:
            Unreadable: it was changed, made for another caller or query, or has expired; the error
                does not say which.
        """
        data = _decoded(text)
        nonce, closed = data[1 : 1 + _NONCE_BYTES], data[1 + _NONCE_BYTES :]
        bound = _bound_to(caller, query)
        for cipher in self._ciphers:
            try:
                sealed = self._decoder.decode(cipher.decrypt(nonce, closed, bound))
            except (InvalidTag, msgspec.DecodeError):
                continue
            if self._now() >= sealed.expires_at_s:
                break
            return sealed.position
        raise Unreadable(_REFUSED)


def cipher_key(text: str) -> bytes:
    """The AES-256 key of a setting in base64.

    Raises:
        SettingsError: it is not 32 bytes of base64.
    """
    try:
        key = urlsafe_b64decode(text.replace("+", "-").replace("/", "_"))
    except (Base64Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise SettingsError("K9_CURSOR_KEYS: each key is 32 bytes in base64, separated by commas")
    return key


def _decoded(text: str) -> bytes:
    """The bytes of a cursor.

    Raises:
        Unreadable: no key could open it.
    """
    if len(text) <= CURSOR_CHARACTERS_MAX:
        try:
            data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (Base64Error, ValueError):
            data = b""
        # base64 leaves bits of the last character unused: only the one true spelling is taken.
        canonical = urlsafe_b64encode(data).rstrip(b"=").decode() == text
        if canonical and data[:1] == _VERSION and len(data) > 1 + _NONCE_BYTES + _TAG_BYTES:
            return data
    raise Unreadable(_REFUSED)


def _bound_to(caller: str, query: str) -> bytes:
    """Additional data. Hashed apart, so that no other caller and query give the same bytes."""
    return sha256(caller.encode()).digest() + sha256(query.encode()).digest()
