"""Watermark tokens: a write returns one, and a search that is given it reflects the write.

A search waits until it reflects the watermark. So that a forged token cannot make it wait, tokens
carry an authentication code made with the cursor keys. The code is an element of the token's array,
where releases that do not know it skip it, so that old and new processes read each other's tokens.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from secrets import token_bytes
from typing import Final

import msgspec

from core.dynamo.cursors import cipher_key
from core.errors import Unreadable
from core.identifiers import product_id_problem
from core.models import Watermark, parse_timestamp

TOKEN_CHARACTERS_MAX: Final = 1024
"""Longer ones are refused unread; a product id of 512 bytes makes a token of about 780."""
_REFUSED: Final = "the watermark is not valid; send X-Watermark as a write returned it"
_KEY_BYTES: Final = 32
_CODE_BYTES: Final = 16
_PURPOSE: Final = b"k9 watermark 1"
"""Derives the signing keys, so that no key is used by two algorithms."""


class Presented(msgspec.Struct, frozen=True):
    """A watermark as a caller sent it."""

    watermark: Watermark
    authentic: bool
    """Whether a write returned it. One that is forged, has no code (up to 23e14f8) or was signed
    with an unknown key is compared with what is visible, but never waited for."""


class _Token(msgspec.Struct, array_like=True):
    """A token's fields. New ones are added at the end; the code covers all of them."""

    moment: str
    product_id: str | None = None
    code: bytes = b""
    """HMAC-SHA-256 over the token without it, cut to 16 bytes; empty until 23e14f8."""
    generation: int | None = None


_DECODER = msgspec.msgpack.Decoder(_Token)


class Watermarks:
    """Encodes and decodes tokens. The first key signs, all keys verify."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Takes the keys of `settings.cursor_keys`; without any, this process makes its own.

        Raises:
            SettingsError: a key is not 32 bytes of base64.
        """
        self._keys = [
            hmac.digest(key, _PURPOSE, "sha256")
            for key in [cipher_key(text) for text in keys] or [token_bytes(_KEY_BYTES)]
        ]

    def encode(self, watermark: Watermark) -> str:
        """The token, in characters that need no escaping in a header, a URL or JSON.

        Equal watermarks make equal tokens, so that a retry is answered with the same one.
        """
        token = _Token(watermark.moment, watermark.product_id, generation=watermark.generation)
        token.code = _code(self._keys[0], token)
        return urlsafe_b64encode(msgspec.msgpack.encode(token)).rstrip(b"=").decode()

    def decode(self, text: str) -> Presented:
        """The inverse of `encode`.

        Raises:
            Unreadable: it is not a token.
        """
        if not 0 < len(text) <= TOKEN_CHARACTERS_MAX:
            raise Unreadable(_REFUSED)
        try:
            plain = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            token = _DECODER.decode(plain)
            parse_timestamp(token.moment)
        except (Base64Error, ValueError, OverflowError, RecursionError):  # msgspec's: ValueErrors
            raise Unreadable(_REFUSED) from None
        product_id = token.product_id
        if product_id is not None and product_id_problem(product_id):
            raise Unreadable(_REFUSED)
        authentic = any(hmac.compare_digest(token.code, _code(key, token)) for key in self._keys)
        return Presented(Watermark(token.moment, product_id, token.generation), authentic)


def _code(key: bytes, token: _Token) -> bytes:
    bare = msgspec.structs.replace(token, code=b"")
    return hmac.digest(key, msgspec.msgpack.encode(bare), "sha256")[:_CODE_BYTES]
