"""Objects from a server that misbehaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from core.aws_calls import count_requests
from core.errors import Corrupt, NotFound, Unavailable
from core.object_store import ObjectStore, open_object_store
from core.settings import Aws, Settings
from tests.scripted import HANG, ScriptedServer, answer

HELLO = sha256(b"hello").hexdigest()


def error(status: int, code: str) -> bytes:
    """An error as S3 words it."""
    return answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())


GOOD = answer(200, b"hello")
RANGED = answer(206, b"hello", headers="content-range: bytes 0-4/5\r\n")
RANGED_CUT = answer(206, b"hel", length=5, headers="content-range: bytes 0-4/5\r\n")
CUT = answer(200, b"he", length=5)


@asynccontextmanager
async def talking_to(server: ScriptedServer, **aws: Any) -> AsyncIterator[ObjectStore]:
    """The bucket `b` of that server."""
    async with server.listening() as url:
        settings = Settings(aws=Aws(endpoint_url=url, bucket="b", **aws))
        async with open_object_store(settings) as objects:
            yield objects


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait before a retry: botocore draws it from 0 to 2 s."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


@pytest.mark.parametrize(
    "trouble", [CUT, error(503, "SlowDown"), error(500, "InternalError")], ids=["cut", "503", "500"]
)
async def test_what_passes_is_tried_again(trouble: bytes) -> None:
    """A body that breaks off is asked for again, as a reply that is an error is."""
    server = ScriptedServer(trouble, trouble, GOOD)
    async with talking_to(server) as objects:
        assert await objects.get_bytes("k", 5) == b"hello"
    assert server.requests == ["GET /b/k HTTP/1.1"] * 3


@pytest.mark.parametrize(
    "trouble", [CUT, error(503, "SlowDown"), error(500, "InternalError")], ids=["cut", "503", "500"]
)
async def test_what_lasts_is_unavailable(trouble: bytes, tmp_path: Path) -> None:
    """After as many tries as the settings say; a download leaves no file behind."""
    server = ScriptedServer(trouble)
    async with talking_to(server) as objects:
        with pytest.raises(Unavailable):
            await objects.get_to_file("k", tmp_path / "file", sha256_hex=HELLO, size=5)
    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240 - a directory in memory, after the fact


async def test_a_cut_part_is_tried_again(tmp_path: Path) -> None:
    """A ranged read that breaks off is asked for again, and the file is whole."""
    server = ScriptedServer(RANGED_CUT, RANGED)
    async with talking_to(server) as objects:
        with count_requests() as count:
            await objects.get_to_file("k", tmp_path / "file", sha256_hex=HELLO, size=5)
    assert count.requests == 2
    assert (tmp_path / "file").read_bytes() == b"hello"


async def test_the_deadline() -> None:
    """A server that never answers costs the deadline."""
    async with talking_to(
        ScriptedServer(HANG), object_deadline_s=0.2, read_timeout_s=5.0
    ) as objects:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await objects.head("k")


async def test_bytes_that_are_not_what_was_put() -> None:
    """A small object whose digest is not the one it was put with is corrupt."""
    reply = answer(200, b"hullo", headers=f"x-amz-meta-sha256: {HELLO}\r\n")
    async with talking_to(ScriptedServer(reply)) as objects:
        with pytest.raises(Corrupt):
            await objects.get_bytes("k", 5)


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (error(404, "NoSuchKey"), NotFound),
        (error(404, "NoSuchBucket"), Unavailable),
        (error(403, "AccessDenied"), Unavailable),
        (error(416, "InvalidRange"), Corrupt),
        (error(409, "ConditionalRequestConflict"), Unavailable),
    ],
)
async def test_each_error_has_its_meaning(reply: bytes, raised: type[Exception]) -> None:
    """One table from S3's codes to K9's errors."""
    async with talking_to(ScriptedServer(reply)) as objects:
        with pytest.raises(raised):
            await objects.get_bytes("k", 5)


async def test_without_a_server_and_a_bucket_name() -> None:
    """Opening needs nothing; the first request is unavailable."""
    async with open_object_store(Settings(aws=Aws(endpoint_url="http://127.0.0.1:1"))) as objects:
        with pytest.raises(Unavailable) as caught:
            await objects.get_bytes("k", 5)
    assert "127.0.0.1" not in str(caught.value)


async def test_presigned_addresses_are_of_version_4() -> None:
    """Version 2 signatures are refused by newer regions; signing makes no request."""
    server = ScriptedServer(GOOD)
    async with talking_to(server) as objects:
        url = await objects.presign("a/b c", 300)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert "X-Amz-Expires=300" in url
    assert server.requests == []


async def test_keys_over_several_pages() -> None:
    """A listing goes on where the page before ended."""
    first = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>p/a</Key></Contents>"
        b"<NextContinuationToken>T</NextContinuationToken></ListBucketResult>"
    )
    last = (
        b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p/b</Key></Contents>"
        b"</ListBucketResult>"
    )
    server = ScriptedServer(answer(200, first), answer(200, last))
    async with talking_to(server) as objects:
        assert await objects.list_keys("p/") == ["p/a", "p/b"]
    assert "continuation-token=T" in server.requests[1]


async def test_a_delete_that_was_not_done() -> None:
    """What S3 did not delete is told."""
    body = b"<DeleteResult><Error><Key>a</Key><Code>InternalError</Code></Error></DeleteResult>"
    async with talking_to(ScriptedServer(answer(200, body))) as objects:
        with pytest.raises(Unavailable, match="1 objects"):
            await objects.delete(["a"])


async def test_a_client_that_is_being_made_as_the_bucket_is_closed_is_closed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody else would; and none is made any more once the bucket is closed."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    @asynccontextmanager
    async def opening(*_: Any) -> AsyncIterator[Any]:
        begun.set()
        await go_on.wait()
        seen.append("made")
        try:
            yield None
        finally:
            seen.append("closed")

    monkeypatch.setattr("core.object_store.open_client", opening)
    async with open_object_store(Settings(aws=Aws(bucket="b"))) as objects:
        reading = asyncio.create_task(objects.get_bytes("k", 5))
        await begun.wait()
        asyncio.get_running_loop().call_soon(go_on.set)
    assert seen == ["made", "closed"]
    await asyncio.gather(reading, return_exceptions=True)
    with pytest.raises(Unavailable):
        await objects.get_bytes("k", 5)
    assert seen == ["made", "closed"]
