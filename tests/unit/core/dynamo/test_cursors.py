"""Cursors: opened by whom they were made for, for as long as they are good, and by nobody else."""

from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode

import hypothesis.strategies as st
import pytest
from hypothesis import given

from core.dynamo.cursors import CURSOR_CHARACTERS_MAX, Cursors
from core.errors import SettingsError, Unreadable

OLD = b64encode(b"o" * 32).decode()
NEW = b64encode(b"n" * 32).decode()
POSITION: dict[str, str | int] = {"product_id": "p/é", "n": 3}
MESSAGE = "the cursor is not valid; start again without it"


def refused(cursors: Cursors, text: str, caller: str = "me", query: str = "q") -> bool:
    """Whether it is refused, with the one message there is."""
    with pytest.raises(Unreadable) as caught:
        cursors.open(text, caller=caller, query=query)
    return str(caught.value) == MESSAGE


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")),
        st.text(st.characters(codec="utf-8")) | st.integers(-(2**63), 2**63 - 1),
    )
)
def test_a_position_comes_back(position: dict[str, str | int]) -> None:
    """Whatever the position, in characters that need no escaping in a query string."""
    cursors = Cursors([NEW], 60)
    text = cursors.seal(position, caller="me", query="q")
    assert cursors.open(text, caller="me", query="q") == position
    assert text.replace("-", "").replace("_", "").isalnum()


def test_nothing_shows_through() -> None:
    """Neither the position nor the caller can be read, and no two cursors are alike."""
    cursors = Cursors([NEW], 60)
    first, second = (cursors.seal({"k": "secret"}, caller="me", query="q") for _ in range(2))
    assert first != second
    assert b"secret" not in urlsafe_b64decode(first + "==")


def test_any_change_is_refused() -> None:
    """Each byte changed, the end cut off, something added: refused."""
    cursors = Cursors([NEW], 60)
    text = cursors.seal(POSITION, caller="me", query="q")
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        assert refused(cursors, urlsafe_b64encode(changed).rstrip(b"=").decode())
    for cut in range(len(text)):
        assert refused(cursors, text[:cut])
    assert refused(cursors, text + "A")


@pytest.mark.parametrize("text", ["", " ", "é", "====", "AQ", "\x00", "a" * 5, "A" * 10**6, "🐕"])
def test_what_never_was_a_cursor(text: str) -> None:
    """Anything else a caller may send is refused alike."""
    assert refused(Cursors([NEW], 60), text)


def test_another_spelling_of_the_same_bytes() -> None:
    """A cursor has one spelling: padding and unused bits are refused."""
    cursors = Cursors([NEW], 60)
    text = cursors.seal({"k": "12"}, caller="me", query="q")
    assert refused(cursors, text + "=" * (-len(text) % 4 or 4))
    assert refused(cursors, text + "\n")


def test_other_callers_and_queries() -> None:
    """A cursor is of its caller and its query; the border between the two does not move."""
    cursors = Cursors([NEW], 60)
    text = cursors.seal(POSITION, caller="ab", query="c")
    assert refused(cursors, text, caller="x", query="c")
    assert refused(cursors, text, caller="ab", query="x")
    assert refused(cursors, text, caller="a", query="bc")


def test_it_ends() -> None:
    """Good until its time is over, and not at that very second."""
    times_s = iter([1000.0, 1059.0, 1060.0])
    cursors = Cursors([NEW], 60, now=lambda: next(times_s))
    text = cursors.seal(POSITION, caller="me", query="q")
    assert cursors.open(text, caller="me", query="q") == POSITION
    assert refused(cursors, text)


def test_keys_change() -> None:
    """The first key seals, all open, and without its key a cursor is refused."""
    text = Cursors([OLD], 60).seal(POSITION, caller="me", query="q")
    assert Cursors([NEW, OLD], 60).open(text, caller="me", query="q") == POSITION
    assert refused(Cursors([NEW], 60), text)
    fresh = Cursors([NEW, OLD], 60).seal(POSITION, caller="me", query="q")
    assert refused(Cursors([OLD], 60), fresh)


def test_without_keys_cursors_are_the_process_own() -> None:
    """No key in the settings: this process opens its own, another does not."""
    cursors = Cursors([], 60)
    text = cursors.seal(POSITION, caller="me", query="q")
    assert cursors.open(text, caller="me", query="q") == POSITION
    assert refused(Cursors([], 60), text)


@pytest.mark.parametrize("key", ["", "x", "é", b64encode(b"k" * 16).decode(), "!" * 44])
def test_a_bad_key_is_named(key: str) -> None:
    """The error names the setting, and not the key."""
    with pytest.raises(SettingsError, match="K9_CURSOR_KEYS") as caught:
        Cursors([NEW, key], 60)
    assert len(key) < 2 or key not in str(caught.value)


def test_a_key_in_either_alphabet() -> None:
    """Standard and URL-safe base64 of a key are the same key."""
    raw = bytes([255, 239] * 16)
    text = Cursors([b64encode(raw).decode()], 60).seal(POSITION, caller="me", query="q")
    again = Cursors([urlsafe_b64encode(raw).decode()], 60)
    assert again.open(text, caller="me", query="q") == POSITION


def test_the_longest_key_of_a_row_fits() -> None:
    """A position of four attributes at DynamoDB's limits is within the limit of a cursor."""
    position = {"a": "é" * 1024, "b": "é" * 512, "c": "x" * 64, "d": "2026-01-01T00:00:00.000000Z"}
    cursors = Cursors([NEW], 60)
    text = cursors.seal(position, caller="me", query="q")
    assert len(text) <= CURSOR_CHARACTERS_MAX
    assert cursors.open(text, caller="me", query="q") == position
