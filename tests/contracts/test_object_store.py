"""Objects against each emulator."""

import asyncio
import os
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import aiohttp
import msgspec
import pytest

from core.aws_calls import count_requests
from core.errors import AlreadyExists, Corrupt, NotFound, Unavailable
from core.object_store import PART_BYTES, ObjectStore, open_object_store
from core.settings import Settings
from tests.emulators import create_tables, settings_for


@pytest.fixture(scope="module")
async def objects(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The bucket, open for the module."""
    async with open_object_store(settings) as store:
        yield store


@pytest.fixture(scope="module")
def large() -> bytes:
    """Bytes of two whole parts and a bit."""
    return os.urandom(1024) * (2 * PART_BYTES // 1024) + b"the rest"


@pytest.fixture
def name() -> str:
    """A key that no other test has."""
    return f"indexes/{uuid4().hex}/file"


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return sha256(data).hexdigest()


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [path.name for path in directory.iterdir()]


class TestObjects:
    """What the store of index versions takes for granted."""

    async def test_bytes_come_back(self, objects: ObjectStore, name: str) -> None:
        """A small object is what was put, and its head tells size and digest."""
        await objects.put(name, b"hello", digest(b"hello"))
        assert await objects.get_bytes(name, 5) == b"hello"
        found = await objects.head(name)
        assert (found.size_bytes, found.sha256_hex) == (5, digest(b"hello"))

    @pytest.mark.parametrize("size", [0, 1, PART_BYTES])
    async def test_a_file_comes_back(
        self, objects: ObjectStore, name: str, tmp_path: Path, size: int
    ) -> None:
        """A file up to a part in size, an empty one too, arrives alone in its directory."""
        data = os.urandom(size)
        source, target = tmp_path / "source", tmp_path / "in" / "target"
        source.write_bytes(data)
        target.parent.mkdir()
        await objects.put(name, source, digest(data))
        await objects.get_to_file(name, target, sha256_hex=digest(data), size=size)
        assert target.read_bytes() == data
        assert names(target.parent) == ["target"]

    async def test_a_large_file_goes_in_parts(
        self, objects: ObjectStore, name: str, tmp_path: Path, large: bytes
    ) -> None:
        """Over a part in size, both ways take several requests, and the bytes are the same."""
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(large)
        with count_requests() as count:
            await objects.put(name, source, digest(large))
        assert count.requests == 6  # head, create, three parts, complete
        with count_requests() as count:
            await objects.get_to_file(name, target, sha256_hex=digest(large), size=len(large))
        assert count.requests == 3
        assert target.read_bytes() == large
        found = await objects.head(name)
        assert (found.size_bytes, found.sha256_hex) == (len(large), digest(large))

    async def test_putting_the_same_again_is_fine(
        self, objects: ObjectStore, name: str, large: bytes
    ) -> None:
        """Equal bytes under a taken key are as good as put, small or in parts."""
        for data in (b"same", large):
            await objects.put(name + str(len(data)), data)
            await objects.put(name + str(len(data)), data)

    async def test_putting_another_is_refused(
        self, objects: ObjectStore, name: str, large: bytes
    ) -> None:
        """Other bytes under a taken key are refused, small or in parts; the first stay."""
        await objects.put(name, b"first")
        for data in (b"other", large):
            with pytest.raises(AlreadyExists):
                await objects.put(name, data)
        assert await objects.get_bytes(name, 100) == b"first"

    async def test_of_many_writers_one_wins(self, objects: ObjectStore, name: str) -> None:
        """Eight different objects put under one key at once: one is there, seven are refused."""

        async def put(number: int) -> bool:
            try:
                await objects.put(name, b"%d" % number)
            except AlreadyExists:
                return False
            return True

        won = await asyncio.gather(*map(put, range(8)))
        assert sum(won) == 1
        assert await objects.get_bytes(name, 100) == b"%d" % won.index(True)

    async def test_a_wrong_digest_is_refused_before_it_is_sent(
        self, objects: ObjectStore, name: str
    ) -> None:
        """Bytes that are not what they should be are not put."""
        with pytest.raises(Corrupt, match="SHA-256"):
            await objects.put(name, b"hello", digest(b"other"))
        with pytest.raises(NotFound):
            await objects.head(name)

    @pytest.mark.parametrize("wrong", [b"hullo", b"hell", b"hello!"])
    async def test_wrong_bytes_leave_no_file(
        self, objects: ObjectStore, name: str, tmp_path: Path, wrong: bytes
    ) -> None:
        """Another digest, fewer bytes or more: refused, and nothing is left on the disk."""
        await objects.put(name, wrong)
        with pytest.raises(Corrupt):
            await objects.get_to_file(
                name, tmp_path / "file", sha256_hex=digest(b"hello"), size=len(b"hello")
            )
        assert names(tmp_path) == []

    async def test_what_is_not_there(self, objects: ObjectStore, name: str, tmp_path: Path) -> None:
        """Each way of reading says that there is no such object."""
        with pytest.raises(NotFound):
            await objects.get_bytes(name, 1)
        with pytest.raises(NotFound):
            await objects.head(name)
        with pytest.raises(NotFound):
            await objects.get_to_file(name, tmp_path / "file", sha256_hex=digest(b""), size=1)
        assert names(tmp_path) == []

    async def test_over_the_limit(self, objects: ObjectStore, name: str) -> None:
        """An object over the limit of a small read is not read."""
        await objects.put(name, b"123456")
        with pytest.raises(Corrupt, match="over 5 bytes"):
            await objects.get_bytes(name, 5)

    async def test_keys_are_listed_and_deleted(self, objects: ObjectStore, name: str) -> None:
        """By prefix, sorted; deleting what is not there is no error."""
        keys = [f"{name}/{n}" for n in range(3)]
        for one in keys:
            await objects.put(one, b"x")
        assert await objects.list_keys(f"{name}/") == keys
        await objects.delete([*keys[:2], f"{name}/nothing"])
        assert await objects.list_keys(f"{name}/") == keys[2:]
        await objects.delete([])

    async def test_a_presigned_address_needs_no_credentials(
        self, objects: ObjectStore, name: str
    ) -> None:
        """Anyone who has the address reads the object."""
        await objects.put(name, b"shared")
        url = await objects.presign(name, 60)
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            assert await reply.read() == b"shared"

    async def test_a_failed_upload_is_aborted(
        self, objects: ObjectStore, name: str, tmp_path: Path, large: bytes
    ) -> None:
        """When a part fails, the upload is aborted, and no object is there."""
        source = tmp_path / "source"
        source.write_bytes(large)
        client = await objects._client_of()  # noqa: SLF001 - the fault has to be in the middle of an upload
        seen: list[str] = []

        def cut(**_: object) -> None:
            raise ConnectionError("cut")

        def abort(**_: object) -> None:
            seen.append("abort")

        client.meta.events.register("before-call.s3.UploadPart", cut, unique_id="cut")
        client.meta.events.register("before-call.s3.AbortMultipartUpload", abort, unique_id="ab")
        try:
            with pytest.raises(ConnectionError, match="cut"):
                await objects.put(name, source)
        finally:
            client.meta.events.unregister("before-call.s3.UploadPart", unique_id="cut")
            client.meta.events.unregister("before-call.s3.AbortMultipartUpload", unique_id="ab")
        assert seen == ["abort"]
        assert await objects.list_keys(name) == []

    async def test_a_bucket_that_is_missing(self, settings: Settings) -> None:
        """The error names the bucket and the command that makes it."""
        aws = msgspec.structs.replace(settings.aws, bucket="k9-no-such-bucket")
        async with open_object_store(msgspec.structs.replace(settings, aws=aws)) as store:
            with pytest.raises(Unavailable, match=r"k9-no-such-bucket \(`k9 tables create` makes"):
                await store.get_bytes("a", 1)

    async def test_the_bucket_is_found_by_the_account(self, settings: Settings) -> None:
        """Without a name in the settings, it is the environment's own of this account."""
        aws = msgspec.structs.replace(settings.aws, bucket=None)
        async with open_object_store(msgspec.structs.replace(settings, aws=aws)) as store:
            await store.put("by-account", b"x")
            url = await store.presign("by-account", 60)
        assert f"/{settings.aws.bucket}/" in url


async def test_bytes_that_arrive_damaged_are_refused(ministack: str) -> None:
    """S3 checks the SHA-256 that goes with a put; moto does not, so this is of one emulator."""
    settings = await create_tables(settings_for(ministack))

    def damage(params: dict[str, object], **_: object) -> None:
        params["body"] = b"hullo"

    async with open_object_store(settings) as store:
        client = await store._client_of()  # noqa: SLF001 - the damage has to be done on the way
        client.meta.events.register("before-call.s3.PutObject", damage)
        with pytest.raises(Corrupt, match="arrived as other bytes"):
            await store.put("damaged", b"hello")
        with pytest.raises(NotFound):
            await store.head("damaged")
