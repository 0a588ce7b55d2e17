"""S3: the bucket of index versions. Objects never change, and are verified both ways."""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from core import files, names
from core.aws import client_config, new_session, object_error, open_client, raise_unavailable
from core.aws_calls import AwsCall, count_request, count_timeout
from core.concurrency import gather
from core.errors import AlreadyExists, Corrupt, K9Error, NotFound, Unavailable
from core.files import ObjectHead
from core.retry import RetryPolicy
from core.settings import Aws, Settings

R = TypeVar("R")

PART_BYTES: Final = 16 * 1024 * 1024
"""Larger files are transferred in parts of this size, both ways."""
_PARTS_AT_ONCE: Final = 4
"""Parts in memory at a time, over all transfers of the process: 64 MiB."""
_DELETE_KEYS_MAX: Final = 1000
_SHA256: Final = "sha256"
"""Metadata of each object: the digest of the whole, in hex."""


class _Truncated(Exception):
    """The body of a reply ended too early."""


def checksum_text(sha256_hex: str) -> str:
    """A digest as S3 has it in header fields: in base64."""
    return b64encode(bytes.fromhex(sha256_hex)).decode()


class ObjectStore:
    """The bucket, opened by `open_object_store`.

    Every method but those that presign raises Unavailable where S3 does not answer in time.
    """

    def __init__(
        self, client: Callable[[], Awaitable[Any]], bucket: Callable[[], Awaitable[str]], aws: Aws
    ) -> None:
        self._client_of = client
        self._bucket_of = bucket
        self._bucket: str | None = None
        self._deadline_s = aws.object_deadline_s
        self._retry = RetryPolicy(first_s=0.05, max_s=1.0, attempts_max=aws.attempts_max)
        """For a body that ends too early: botocore retries only until the reply has begun."""
        self._parts = asyncio.Semaphore(_PARTS_AT_ONCE)

    async def put(self, key: str, source: Path | bytes, sha256_hex: str | None = None) -> None:
        """Puts a file or bytes, whole or not at all. The same bytes that are there count as put.

        A file must not change meanwhile. Without an expected digest the source is not checked.

        Raises:
            Corrupt: the source has another digest, or arrived as other bytes.
            AlreadyExists: other bytes are there.
        """
        size, digest = await asyncio.to_thread(files.size_and_digest, source)
        if sha256_hex is not None and digest != sha256_hex:
            raise Corrupt(f"the source of {key} does not have the expected SHA-256")
        try:
            if size <= PART_BYTES:
                await self._put_whole(key, source, digest)
            elif not await self._holds(key, size, digest):
                await self._put_parts(key, source, size, digest)
        except AlreadyExists:
            if not await self._holds(key, size, digest):
                raise

    async def get_to_file(self, key: str, path: Path, *, sha256_hex: str, size: int) -> None:
        """Downloads to a temporary name beside `path`, verifies digest and size, and renames.

        Raises:
            Corrupt: it has another size or digest; nothing is left on disk.
            NotFound: there is no such object.
        """
        partial = path.with_name(f".{path.name}.{uuid4().hex}.part")
        handle = await asyncio.to_thread(files.create_file, partial)
        try:
            await self._get_parts(key, handle, size)
            await asyncio.to_thread(files.verify_and_rename, handle, partial, path, sha256_hex)
        finally:
            await asyncio.to_thread(files.discard, handle, partial)

    async def get_bytes(self, key: str, max_bytes: int) -> bytes:
        """A small object, verified against the digest it was put with.

        Raises:
            Corrupt: it is over `max_bytes`, or its bytes are not those that were put.
            NotFound: there is no such object.
        """
        data, reply = await self._get(key, max_bytes=max_bytes)
        _, digest = await asyncio.to_thread(files.size_and_digest, data)
        if reply.get("Metadata", {}).get(_SHA256) not in {None, digest}:
            raise Corrupt(f"object {key} is not what was put")
        return data

    async def head(self, key: str) -> ObjectHead:
        """Size and digests of an object.

        Raises:
            NotFound: there is no such object.
        """
        reply = await self._call("head_object", key, Key=key, ChecksumMode="ENABLED")
        digest = reply.get("Metadata", {}).get(_SHA256)
        etag = reply.get("ETag")
        return ObjectHead(reply["ContentLength"], digest, reply.get("ChecksumSHA256"), etag)

    async def presign(self, key: str, expires_s: int) -> str:
        """A URL that reads the object without credentials for `expires_s` seconds. No request."""
        return await self._presign("get_object", key, expires_s)

    async def presign_put(self, key: str, expires_s: int, size: int, sha256_hex: str) -> str:
        """A URL by which an object of exactly this size and digest can be put. No request.

        Length and checksum are signed header fields, so the request has to carry both:
        `Content-Length`, and `x-amz-checksum-sha256` in base64. S3 compares the digest.
        """
        checksum = checksum_text(sha256_hex)
        return await self._presign(
            "put_object", key, expires_s, ContentLength=size, ChecksumSHA256=checksum
        )

    async def get_pinned(
        self, key: str, path: Path, *, etag: str, size: int, on_bytes: Callable[[int], None]
    ) -> None:
        """Downloads an object that somebody else put to a new file, as long as it has this ETag.

        `on_bytes` is called with how many bytes are there, after each part.

        Raises:
            AlreadyExists: the object has another ETag by now.
            Corrupt: it has another size.
            NotFound: there is no such object any more.
        """
        handle = await asyncio.to_thread(files.create_file, path)
        try:
            await self._get_parts(key, handle, size, on_bytes, IfMatch=etag)
        finally:
            await asyncio.to_thread(os.close, handle)

    async def list_keys(self, prefix: str) -> list[str]:
        """The keys with this prefix, sorted."""
        keys: list[str] = []
        more: dict[str, str] = {}
        while True:
            reply = await self._call("list_objects_v2", prefix, Prefix=prefix, **more)
            keys += [entry["Key"] for entry in reply.get("Contents", ())]
            if not reply.get("IsTruncated"):
                return keys
            more = {"ContinuationToken": reply["NextContinuationToken"]}

    async def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; missing ones count as deleted.

        Raises:
            Unavailable: some are still there.
        """
        pending = list(keys)
        for start in range(0, len(pending), _DELETE_KEYS_MAX):
            chunk = [{"Key": key} for key in pending[start : start + _DELETE_KEYS_MAX]]
            reply = await self._call(
                "delete_objects", chunk[0]["Key"], Delete={"Objects": chunk, "Quiet": True}
            )
            if reply.get("Errors"):
                raise Unavailable(f"S3 did not delete {len(reply['Errors'])} objects")

    async def _holds(self, key: str, size: int, digest: str) -> bool:
        try:
            found = await self.head(key)
        except NotFound:
            return False
        return (found.size_bytes, found.sha256_hex) == (size, digest)

    async def _put_whole(self, key: str, source: Path | bytes, digest: str) -> None:
        async with self._parts:
            body = (
                source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
            )
            await self._call(
                "put_object",
                key,
                Key=key,
                Body=body,
                ChecksumSHA256=checksum_text(digest),
                Metadata={_SHA256: digest},
                IfNoneMatch="*",
            )

    async def _put_parts(self, key: str, source: Path | bytes, size: int, digest: str) -> None:
        upload = await self._call(
            "create_multipart_upload",
            key,
            Key=key,
            ChecksumAlgorithm="SHA256",
            Metadata={_SHA256: digest},
        )
        target = {"Key": key, "UploadId": upload["UploadId"]}
        try:
            parts = await gather(
                *(
                    self._put_part(target, source, number, offset)
                    for number, offset in enumerate(range(0, size, PART_BYTES), 1)
                )
            )
            await self._call(
                "complete_multipart_upload",
                key,
                **target,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except BaseException:
            # Parts of an upload that is never completed are paid for until it is aborted. The
            # bucket's lifecycle rule aborts what a killed process leaves.
            abort = asyncio.ensure_future(self._call("abort_multipart_upload", key, **target))
            with suppress(K9Error, ClientError):
                await asyncio.shield(abort)
            raise

    async def _put_part(
        self, target: dict[str, str], source: Path | bytes, number: int, offset: int
    ) -> dict[str, Any]:
        async with self._parts:
            body, checksum = await asyncio.to_thread(files.read_part, source, offset, PART_BYTES)
            reply = await self._call(
                "upload_part",
                target["Key"],
                **target,
                PartNumber=number,
                Body=body,
                ChecksumSHA256=checksum,
            )
        return {"PartNumber": number, "ETag": reply["ETag"], "ChecksumSHA256": checksum}

    async def _presign(self, operation: str, key: str, expires_s: int, **signed: Any) -> str:
        client = await self._client_of()
        url: str = await self._within(
            key,
            lambda bucket: client.generate_presigned_url(
                operation, Params={"Bucket": bucket, "Key": key, **signed}, ExpiresIn=expires_s
            ),
        )
        return url

    async def _get_parts(
        self,
        key: str,
        handle: int,
        size: int,
        on_bytes: Callable[[int], None] = lambda _: None,
        **pinned: str,
    ) -> None:
        """Writes an object into an open file; `on_bytes` is as of `get_pinned`."""
        there = 0

        async def get_part(offset: int) -> None:
            nonlocal there
            end = min(offset + PART_BYTES, size)
            ranged = {"Range": f"bytes={offset}-{end - 1}"} if size else {}
            async with self._parts:
                data, reply = await self._get(key, max_bytes=end - offset, **ranged, **pinned)
                total = reply.get("ContentRange", f"/{len(data)}").rpartition("/")[2]
                if len(data) != end - offset or total != str(size):
                    raise Corrupt(f"object {key} is of {total} bytes and should be of {size}")
                await asyncio.to_thread(files.write_at, handle, data, offset)
            there += len(data)
            on_bytes(there)

        # An empty object has no range: it is read whole, by one request.
        await gather(*(get_part(offset) for offset in range(0, max(size, 1), PART_BYTES)))

    async def _get(
        self, key: str, *, max_bytes: int, **parameters: Any
    ) -> tuple[bytes, dict[str, Any]]:
        """The bytes and the reply, requested again where the body ends too early."""
        client = await self._client_of()

        async def read(bucket: str) -> tuple[bytes, dict[str, Any]]:
            reply = await client.get_object(Bucket=bucket, Key=key, **parameters)
            async with reply["Body"] as body:
                if reply["ContentLength"] > max_bytes:
                    raise Corrupt(f"object {key} is over {max_bytes} bytes")
                try:
                    return await body.read(), reply
                except (
                    aiohttp.ClientError,
                    HTTPClientError,
                    IncompleteReadError,
                    OSError,
                ) as error:
                    raise _Truncated from error

        async def attempt() -> tuple[bytes, dict[str, Any]]:
            count_request()
            with AwsCall("s3", "GetObject", key=key):
                return await self._within(key, read)

        try:
            return await self._retry.call(attempt, on=_Truncated)
        except _Truncated as error:
            raise Unavailable("S3 ended the body of an object too early") from error

    async def _call(self, operation: str, subject: str, **parameters: Any) -> dict[str, Any]:
        count_request()
        client = await self._client_of()
        method = getattr(client, operation)
        with AwsCall("s3", client.meta.method_to_api_mapping[operation], key=subject):
            reply: dict[str, Any] = await self._within(
                subject, lambda bucket: method(Bucket=bucket, **parameters)
            )
        return reply

    async def _within(self, subject: str, act: Callable[[str], Awaitable[R]]) -> R:
        """Runs one request within its deadline; the one table from S3's errors to K9's."""
        try:
            async with asyncio.timeout(self._deadline_s):
                if self._bucket is None:
                    self._bucket = await self._bucket_of()
                return await act(self._bucket)
        except TimeoutError:
            count_timeout()
            raise Unavailable(f"S3 did not answer within {self._deadline_s:g} s") from None
        except ClientError as error:
            raised = object_error(error, subject, self._bucket or "")
            if raised is None:
                raise
            raise raised from error
        except BotoCoreError as error:
            raise_unavailable(error, "S3")
            raise


@asynccontextmanager
async def open_object_store(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The bucket, until the end of the block. Its client, 50 ms of work, is made at first use."""
    aws = settings.aws
    session = new_session()
    endpoint_url = aws.endpoint_url_s3 or aws.endpoint_url
    config = client_config(
        settings,
        # A part of 16 MiB may take its time to be taken in; a connection that is silent for a
        # third of the deadline is given up, and tried again.
        read_timeout_s=max(aws.read_timeout_s, aws.object_deadline_s / aws.attempts_max),
    ).merge(
        AioConfig(
            # Presigned addresses would still be signed by version 2, which newer regions refuse.
            signature_version="s3v4",
            # Every transfer carries a SHA-256 of ours; botocore would add a CRC-32 to each.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                # An emulator's address has no name for each bucket below it.
                "addressing_style": "path" if endpoint_url else "auto",
                # That SHA-256 is signed; to sign the body too would hash it on the event loop.
                "payload_signing_enabled": False,
            },
        )
    )

    async def bucket() -> str:
        if aws.bucket is not None:
            return aws.bucket
        async with open_client(session, "sts", client_config(settings), aws.endpoint_url) as sts:
            with AwsCall("sts", "GetCallerIdentity"):
                account = (await sts.get_caller_identity())["Account"]
        return names.default_bucket(settings.environment, account)

    async with AsyncExitStack() as stack:
        lock = asyncio.Lock()
        made: list[Any] = []
        closed = False

        async def client() -> Any:
            async with lock:
                if closed:
                    raise Unavailable("the process is about to end")
                if not made:
                    opening = open_client(session, "s3", config, endpoint_url)
                    made.append(await stack.enter_async_context(opening))
            return made[0]

        try:
            yield ObjectStore(client, bucket, aws)
        finally:
            async with lock:  # what a task has begun to make is closed too
                closed = True
