"""Media types and content codings by RFC 9110, and bodies in their codings."""

import gzip
import tracemalloc

import pytest
from backports import zstd

from api.admission.executor import finished
from api.http.codings import STEP_BYTES, decoded
from api.http.negotiation import Coding, coding_of, media_of, prefers_msgpack
from core.errors import TooLarge, Unreadable

MANY = bytes(range(256)) * 8192


@pytest.mark.parametrize(
    ("accept", "msgpack"),
    [
        (b"", False),
        (b"*/*", False),
        (b"application/json", False),
        (b"application/msgpack", True),
        (b"APPLICATION/MsgPack ; Q=0.3", True),
        (b"application/msgpack;q=0", False),
        (b"application/msgpack;q=0.000, */*", False),
        (b"application/msgpack-foo", False),
        (b"application/msgpack;v=2", False),
        (b"application/msgpack;q=2", False),
        (b"application/json, application/msgpack", True),
        (b"application/json, application/msgpack;q=0.5", False),
        (b"application/json;q=0.5, application/msgpack;q=0.6", True),
        (b"application/*;q=0.5, application/json;q=0.1", True),
        (b"application/json;q=0, */*;q=0.1", True),
        (b"text/html, */*;q=0.1", False),
        (b'text/x;p="a, application/msgpack", application/json', False),
        (b"text/html", False),
        (b"*/*, " * 200 + b"application/msgpack", True),
    ],
)
def test_an_answer_is_of_the_type_that_is_preferred(accept: bytes, *, msgpack: bool) -> None:
    """By quality, the most exact range counting; JSON where nothing fits."""
    assert prefers_msgpack(accept) is msgpack


@pytest.mark.parametrize(
    ("content_type", "media"),
    [
        (b"", "json"),
        (b"application/json; charset=utf-8", "json"),
        (b"application/merge-patch+json", "json"),
        (b"application/x-www-form-urlencoded", "json"),
        (b"Application/MsgPack", "msgpack"),
        (b"application/vnd.msgpack", "msgpack"),
        (b"application/msgpack-foo", None),
        (b"application/jsonp", None),
        (b"+json", None),
        (b"text/plain", None),
        (b"multipart/form-data; boundary=x", None),
        (b"x" * 1000, None),
    ],
)
def test_a_body_is_read_by_its_exact_type(content_type: bytes, media: str | None) -> None:
    """JSON, `+json`, msgpack, a form's label and none are taken."""
    assert media_of(content_type) == media


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", (None, True)),
        (b"identity", (None, True)),
        (b"GZIP", ("gzip", True)),
        (b"x-gzip", ("gzip", True)),
        (b"zstd, identity", ("zstd", True)),
        (b"br", (None, False)),
        (b"gzip, gzip", ("gzip", False)),
    ],
)
def test_one_coding_is_taken(header: bytes, expected: tuple[str | None, bool]) -> None:
    """Gzip or zstd, and none of them twice."""
    assert coding_of(header) == expected


def _coded(coding: Coding, data: bytes) -> bytes:
    return gzip.compress(data) if coding == "gzip" else zstd.compress(data)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_coded_body_is_what_it_was(coding: Coding) -> None:
    """Empty, in one member and in several."""
    for data in (b"", b"{}", MANY):
        assert finished(decoded(_coded(coding, data), coding, len(MANY))) == data
    several = _coded(coding, MANY) + _coded(coding, b"{}")
    assert finished(decoded(several, coding, len(MANY) + 2)) == MANY + b"{}"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_coded_body_that_is_broken_cannot_be_read(coding: Coding) -> None:
    """Cut short, followed by something else, of another coding, in members without end."""
    whole = _coded(coding, MANY)
    for broken in (b"", b"xx", whole[:-3], whole[:5], whole + b"xx", _coded(coding, b"") * 5000):
        with pytest.raises(Unreadable):
            finished(decoded(broken, coding, len(MANY)))


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_costs_no_memory(coding: Coding) -> None:
    """It is refused once it is over the limit, however much would have come."""
    bomb = _coded(coding, bytes(300_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            finished(decoded(bomb, coding, 2_000_000))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000 + 4 * STEP_BYTES
    finally:
        tracemalloc.stop()
