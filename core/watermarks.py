"""Watermarks: what a write answers with, so that a later search can ask to reflect it."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import Final

import msgspec

from core.errors import Unreadable
from core.models import parse_timestamp
from core.usecases.identifiers import product_id_problem

TOKEN_CHARACTERS_MAX: Final = 1024
"""Longer texts are refused unread; a product id of 512 bytes makes a token of about 750."""
_REFUSED: Final = "the watermark does not hold; send X-Watermark as a write answered it"


class Watermark(msgspec.Struct, frozen=True, array_like=True):
    """The moment of a write, and which product it was for."""

    moment: str
    """As `core.models.timestamp` writes it, so that watermarks compare as text."""
    product_id: str | None = None
    """None for a batch: whatever its shards showed after the moment."""


_DECODER = msgspec.msgpack.Decoder(Watermark)


def encode(moment: str, product_id: str | None = None) -> str:
    """A token of characters that need no escaping in a header, a URL or JSON."""
    plain = msgspec.msgpack.encode(Watermark(moment, product_id))
    return urlsafe_b64encode(plain).rstrip(b"=").decode()


def decode(token: str, product_id_bytes_max: int) -> Watermark:
    """The inverse of `encode`. A token is no secret, and is trusted with nothing but a wait.

    Raises:
        Unreadable: it is no token of ours: no product has an id like its.
    """
    if not 0 < len(token) <= TOKEN_CHARACTERS_MAX:
        raise Unreadable(_REFUSED)
    try:
        plain = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        watermark = _DECODER.decode(plain)
        parse_timestamp(watermark.moment)
    except (Base64Error, ValueError, OverflowError, RecursionError):  # msgspec's are ValueErrors
        raise Unreadable(_REFUSED) from None
    product_id = watermark.product_id
    if product_id is not None and product_id_problem(product_id, product_id_bytes_max):
        raise Unreadable(_REFUSED)
    return watermark
