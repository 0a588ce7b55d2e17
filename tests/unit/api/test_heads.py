"""Which heads are read without the parser, and where their requests end."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.server.heads import BODY_BYTES_MAX, plain_head

LINE = b"POST /models/m-1.2/search HTTP/1.1"
USUAL = [b"Host: k9.test", b"Authorization: Bearer a.b.c", b"Content-Length: 5"]
BODY = b"12345"


def request(*fields: bytes, line: bytes = LINE) -> bytes:
    """A request with these fields, and with what comes after it."""
    return b"\r\n".join([line, *fields, b"", b""]) + BODY + b"GET / HTTP/1.1\r\n\r\n"


def test_a_plain_search_is_read() -> None:
    """Names in any case, values without the space around them, and the end of the body."""
    sent = request(*USUAL, b"X-REQUEST-id:  mine ", b"connection: keep-alive", b"origin:")
    head = plain_head(sent)
    assert head is not None
    assert sent[: head.total].endswith(b"\r\n\r\n" + BODY)
    assert head.value(b"authorization") == b"Bearer a.b.c"
    assert head.value(b"x-request-id") == b"mine"
    assert head.value(b"origin") == head.value(b"traceparent") == b""


@pytest.mark.parametrize(
    "fields",
    [
        USUAL[:2],
        USUAL[1:],
        [*USUAL, b"Transfer-Encoding: chunked"],
        [*USUAL, b"Transfer-Encoding : chunked"],
        [*USUAL, b"X: y\r\n Transfer-Encoding: chunked"],
        [*USUAL, b"X: y\nTransfer-Encoding: chunked"],
        [*USUAL, b"X: y\rTransfer-Encoding: chunked"],
        [*USUAL, b"Content-Length: 5"],
        [*USUAL, b"content-length: 6"],
        [*USUAL, b"Host: another"],
        [*USUAL, b"Expect: 100-continue"],
        [*USUAL, b"Connection: close"],
        [*USUAL, b"Proxy-Connection: close"],
        [*USUAL, b"Connection: upgrade", b"Upgrade: h2c"],
        [*USUAL, b"no colon"],
        [*USUAL, b": no name"],
        [*USUAL, b"X: \x00"],
        [*USUAL, b"X: \xff"],
        [*USUAL, *(b"X-%d: 1" % number for number in range(100))],
        [*USUAL, b"X: " + b"x" * 20_000],
        *([*USUAL[:2], b"Content-Length: " + text] for text in (b"+5", b"5_0", b"5 5", b"", b"-1")),
        [*USUAL[:2], b"Content-Length: %d" % (BODY_BYTES_MAX + 1)],
    ],
)
def test_any_other_head_is_for_the_parser(fields: list[bytes]) -> None:
    """All that might end a request elsewhere, or its connection, and all that breaks HTTP."""
    assert plain_head(request(*fields)) is None


def test_only_searches_are_read() -> None:
    """Of one method, one path and one version; and not before the head has come whole."""
    for line in (
        b"GET /models/m/search HTTP/1.1",
        b"POST /models/m/search HTTP/1.0",
        b"POST /models/m/search?x=1 HTTP/1.1",
        b"POST /models/m/products/search HTTP/1.1",
        b"POST http://h/models/m/search HTTP/1.1",
        b"POST /models//search HTTP/1.1",
    ):
        assert plain_head(request(*USUAL, line=line)) is None
    whole = b"\r\n".join([LINE, *USUAL, b"", b""])
    assert all(plain_head(whole[:end]) is None for end in range(len(whole)))
    assert plain_head(whole) is not None


class Ended:
    """What the parser finds."""

    def __init__(self) -> None:
        self.ends = 0

    def on_message_complete(self) -> None:
        """A request has ended."""
        self.ends += 1


NAMES = (b"Content-Length", b"Transfer-Encoding", b"Connection", b"Host", b"X")
MARKS = (b"\r\n", b"\n", b"\r", b": ", b":", b" ", b"\t", b"\x00", b"\xff", b",")
PIECES = st.sampled_from([*NAMES, *MARKS, b"5", b"close", b"chunked"])


@given(st.lists(PIECES, max_size=8))
def test_the_parser_finds_the_same_end(pieces: list[bytes]) -> None:
    """Whatever is sent between the usual fields: one request ends there and no sooner."""
    sent = request(*USUAL, b"A: " + b"".join(pieces))
    head = plain_head(sent)
    if head is None:
        return
    found = Ended()
    parser = httptools.HttpRequestParser(found)
    parser.feed_data(sent[: head.total - 1])
    assert found.ends == 0
    parser.feed_data(sent[head.total - 1 : head.total])
    assert found.ends == 1
    assert parser.should_keep_alive()
