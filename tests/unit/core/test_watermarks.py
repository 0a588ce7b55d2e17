"""Watermarks: what is read, what is refused, and which of them a write answered."""

import base64
import contextlib
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SettingsError, Unreadable
from core.models import Watermark
from core.watermarks import TOKEN_CHARACTERS_MAX, Watermarks

MOMENT = "2026-01-02T03:04:05.000006Z"
EARLIER = "krsyMDI2LTAxLTAyVDAzOjA0OjA1LjAwMDAwNlqjYS9i"
"""As commit 23e14f8 wrote it: the moment above, and the product `a/b`."""
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(3)]


class _Earlier(msgspec.Struct, frozen=True, array_like=True):
    """What commit 23e14f8 reads of a token."""

    moment: str
    product_id: str | None = None


@pytest.mark.parametrize("product_id", [None, "ü" * 256, "a/b", "x" * 512])
def test_a_watermark_is_what_it_was(product_id: str | None) -> None:
    """For a product and for a batch, always the same, in characters that need no escaping."""
    watermarks = Watermarks(())
    token = watermarks.encode(Watermark(MOMENT, product_id))
    assert quote(token, safe="") == token
    assert len(token) < TOKEN_CHARACTERS_MAX
    assert token == watermarks.encode(Watermark(MOMENT, product_id))
    presented = watermarks.decode(token)
    assert presented.watermark == Watermark(MOMENT, product_id)
    assert presented.authentic


def test_the_release_before_reads_a_token_and_its_own_are_read() -> None:
    """In a rolling upgrade a write and a search may be answered by one release each."""
    watermarks = Watermarks(KEYS)
    presented = watermarks.decode(EARLIER)
    assert presented.watermark == Watermark(MOMENT, "a/b")
    assert not presented.authentic
    token = watermarks.encode(Watermark(MOMENT, "a/b"))
    plain = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert msgspec.msgpack.decode(plain, type=_Earlier) == _Earlier(MOMENT, "a/b")


def test_keys_can_change() -> None:
    """The first signs, all verify, and what another key signed is no more than a text."""
    watermark = Watermark(MOMENT, "a")
    old = Watermarks(KEYS[:1]).encode(watermark)
    assert Watermarks([KEYS[1], KEYS[0]]).decode(old).authentic
    for others in ([KEYS[2]], ()):
        presented = Watermarks(others).decode(old)
        assert (presented.watermark, presented.authentic) == (watermark, False)
    with pytest.raises(SettingsError):
        Watermarks(["short"])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_token_is_not_authentic(place: int, change: int) -> None:
    """Whichever byte is another: it is refused, or known as none of ours."""
    watermarks = Watermarks(KEYS)
    token = watermarks.encode(Watermark(MOMENT, "product"))
    plain = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    plain[place % len(plain)] ^= change
    with contextlib.suppress(Unreadable):
        changed = base64.urlsafe_b64encode(plain).rstrip(b"=").decode()
        assert not watermarks.decode(changed).authentic


@given(st.text(max_size=60))
def test_no_text_does_worse_than_being_refused(token: str) -> None:
    """Any text is a watermark or `Unreadable`."""
    with contextlib.suppress(Unreadable):
        assert not Watermarks(KEYS).decode(token).authentic


@pytest.mark.parametrize("moment", ["zzz", "", "9999", "0001-01-01T00:00:00+14:00"])
def test_a_watermark_without_a_moment_is_refused(moment: str) -> None:
    """Text in the moment's place would compare as anything."""
    watermarks = Watermarks(())
    with pytest.raises(Unreadable):
        watermarks.decode(watermarks.encode(Watermark(moment)))


@pytest.mark.parametrize("product_id", ["", " ", "..", "x" * 513, "a\nb"])
def test_a_watermark_of_no_product_is_refused(product_id: str) -> None:
    """DynamoDB would refuse to read it, and with it every other row of the same call."""
    watermarks = Watermarks(())
    with pytest.raises(Unreadable):
        watermarks.decode(watermarks.encode(Watermark(MOMENT, product_id)))
