"""Paths, queries and bodies: what is read, and what is refused."""

import contextlib
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.admission.executor import finished
from api.http.paths import routed_path, unescape
from api.http.request import check_query
from api.routes.embeddings import decode_entries
from api.wire.decoding import LARGE_BYTES, BodyDecoder
from api.wire.embeddings import BatchBody
from api.wire.vectors import floats
from core.errors import Invalid, Unreadable

_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    k: int = 1
    names: list[str] = []


_decoder = BodyDecoder(_Body)


@given(_TEXT, _TEXT)
def test_segments_survive_the_path(first: str, second: str) -> None:
    """Whatever is in them, there are as many as were sent, and each is what was meant."""
    raw = f"/{quote(first, safe='')}/{quote(second, safe='')}".encode()
    routed = routed_path(raw)
    assert [unescape(part) for part in routed.split("/")] == ["", first, second]


@given(st.binary(max_size=60))
def test_no_path_does_worse_than_being_refused(raw: bytes) -> None:
    """Any bytes are a path or `Unreadable`."""
    with contextlib.suppress(Unreadable):
        routed_path(raw)


def test_a_path_without_escapes_is_itself() -> None:
    """And one that is too long is refused."""
    assert routed_path(b"/models/m-1/embeddings:batch") == "/models/m-1/embeddings:batch"
    assert routed_path(b"/models/m-1/embeddings%3Abatch") == "/models/m-1/embeddings:batch"
    with pytest.raises(Unreadable):
        routed_path(b"/" * 10_000)


@pytest.mark.parametrize("raw", [b"a=%FF", b"&".join([b"a=1"] * 200)])
def test_a_query_that_cannot_be_read_is_unreadable(raw: bytes) -> None:
    """Bytes that are no UTF-8, and parameters without end."""
    with pytest.raises(Unreadable):
        check_query(raw)


@given(st.binary(max_size=200))
def test_no_body_does_worse_than_being_refused(data: bytes) -> None:
    """Any bytes, as JSON and as msgpack."""
    for msgpack in (False, True):
        with contextlib.suppress(Unreadable, Invalid):
            _decoder.decode(data, msgpack=msgpack)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"k": "1"}', "k"),
        (b'{"names": ["a", 1]}', "names[1]"),
        (b'{"zz": 1}', "zz"),
        (b"5", "body"),
        (b'{"' + b"z" * 10_000 + b'": 1}', "z" * 200 + "…"),
    ],
)
def test_what_does_not_hold_is_named_by_its_path(body: bytes, field: str) -> None:
    """As in `names[1]`; a caller's own long text is cut."""
    with pytest.raises(Invalid) as raised:
        _decoder.decode(body, msgpack=False)
    assert [error.field for error in raised.value.errors] == [field]


def test_what_fails_early_is_still_read_to_its_end() -> None:
    """A wrong type first and half a JSON behind it cannot be read at all."""
    with pytest.raises(Unreadable):
        _decoder.decode(b'{"k": "1", "names": [', msgpack=False)


def test_a_vector_far_too_long_is_refused_before_its_numbers_are_made() -> None:
    """By counting them, and with both numbers in the message."""
    raw = msgspec.Raw(b"[" + b"0.25, " * 99_999 + b"1]")
    assert len(raw) > LARGE_BYTES
    with pytest.raises(Invalid, match="has 100000 numbers, the most is 4096"):
        floats(raw, "vector", msgpack=False)


def test_a_batch_of_the_largest_kind_is_read_exactly() -> None:
    """Each row is what was sent, in JSON with all digits and in msgpack."""
    rows = np.random.default_rng(1).normal(size=(20, 4096)).astype(np.float32)
    plain = [{"product_id": str(n), "vector": row.tolist()} for n, row in enumerate(rows)]
    packed = [{"product_id": str(n), "vector": row.tobytes()} for n, row in enumerate(rows)]
    for data, msgpack in (
        (msgspec.json.encode({"embeddings": plain}), False),
        (msgspec.msgpack.encode({"embeddings": packed}), True),
    ):
        body = finished(BatchBody.decoding(data, msgpack=msgpack))
        stored, attributes, malformed = finished(decode_entries(body, msgpack=msgpack))
        assert not malformed
        assert attributes == [None] * 20
        assert np.array_equal(np.stack([vector for _, vector in stored]), rows)
