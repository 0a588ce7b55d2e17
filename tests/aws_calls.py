"""Which calls of AWS the API and the worker make, held against the list that their roles allow.

`tests/aws_calls.txt` is that list: role, IAM action, and the table, index or `bucket` it is for. A
test that has the code make a call which is not in it fails where the call is made. With
K9_RECORD_AWS_CALLS=DIRECTORY the calls are written there instead, and
`python -m tests.aws_calls DIRECTORY` makes the list from what a run of all tests wrote.

Who makes a call is seen from the frames that await it: the first package that is not `core`; a task
that `core` starts counts for whoever had it started. Calls of tests and of commands count for no
role.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context, ContextVar, copy_context
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from aiobotocore.client import AioBaseClient

from core.dynamo import tables
from core.dynamo.endpoint import Endpoint
from core.dynamo.wire import WireParser
from core.object_store import ObjectStore

RECORD: Final = "K9_RECORD_AWS_CALLS"
LIST: Final = Path(__file__).parent / "aws_calls.txt"
ROLES: Final = ("api", "worker")
_ROOT: Final = Path(__file__).parent.parent
_PACKAGES: Final = {str(_ROOT / name) + os.sep: name for name in (*ROLES, "deploy", "tests")}
_FRAMES_MAX: Final = 200
_starter: Final[ContextVar[str | None]] = ContextVar("starter", default=None)
"""The package that had the present task started."""

_S3_ACTIONS: Final = {
    # Without the right to list, S3 answers 403 in place of 404 for an object that is not there.
    "GetObject": ("s3:GetObject", "s3:ListBucket"),
    "HeadObject": ("s3:GetObject", "s3:ListBucket"),
    "ListObjectsV2": ("s3:ListBucket",),
    # A larger file is put in parts, which a failure gives up.
    "PutObject": ("s3:PutObject", "s3:AbortMultipartUpload"),
    "CreateMultipartUpload": ("s3:PutObject",),
    "UploadPart": ("s3:PutObject",),
    "CompleteMultipartUpload": ("s3:PutObject",),
    "AbortMultipartUpload": ("s3:AbortMultipartUpload",),
    "DeleteObjects": ("s3:DeleteObject",),
    # Made by whoever has the address, with the right of the role that signed it.
    "PresignedPut": ("s3:PutObject",),
}
_TRANSACTION_ACTIONS: Final = {"ConditionCheck": "ConditionCheckItem"}


class AwsCall(NamedTuple):
    """One thing that a role may do."""

    role: str
    action: str
    """As IAM has it: `dynamodb:Query`."""
    resource: str
    """`users`, `users/UserReportsIndex`, or `bucket`."""


class UnlistedCall(AssertionError):
    """The code called AWS as its role would not allow."""


def read_list() -> frozenset[AwsCall]:
    """The calls that the code is known to make."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(AwsCall(*line.split()) for line in lines if line and not line.startswith("#"))


def needed(
    service: str, operation: str, parameters: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """The IAM actions, each with its resource, of one call."""
    if service in {"sts", "secretsmanager"}:
        # GetCallerIdentity needs no permission; only the Lambda function reads secrets itself.
        return
    if service == "s3":
        yield from ((action, "bucket") for action in _S3_ACTIONS[operation])
        return
    if operation == "TransactWriteItems":
        for part in parameters["TransactItems"]:
            ((kind, body),) = part.items()
            action = _TRANSACTION_ACTIONS.get(kind, f"{kind}Item")
            yield f"dynamodb:{action}", _table(body["TableName"])
        return
    if "RequestItems" in parameters:
        for name in parameters["RequestItems"]:
            yield f"{service}:{operation}", _table(name)
        return
    resource = _table(parameters["TableName"])
    if "IndexName" in parameters:
        resource += f"/{parameters['IndexName']}"
    yield f"{service}:{operation}", resource


def _table(name: str) -> str:
    """`users` of `k9-users-dev`; a test's own name is as it is."""
    return next((t.name for t in tables.ALL if name.startswith(f"k9-{t.name}-")), name)


@cache
def _package_of(file: str) -> str | None:
    """The package, other than core, that a source file is in."""
    found = (name for prefix, name in _PACKAGES.items() if file.startswith(prefix))
    return None if file == __file__ else next(found, None)


def caller(frame: FrameType | None) -> str | None:
    """The package, other than core, that a frame works for."""
    for _ in range(_FRAMES_MAX):
        if frame is None:
            break
        found = _package_of(frame.f_code.co_filename)
        if found is not None:
            return found
        frame = frame.f_back
    return _starter.get()


def begin() -> None:
    """Watches every client of this process from now on."""
    directory = os.environ.get(RECORD)
    record = Path(directory, f"{os.getpid()}.txt") if directory else None
    known = set(read_list()) if record is None else set[AwsCall]()
    real_call = AioBaseClient._make_api_call  # noqa: SLF001 - where botocore's own hooks lack the caller

    def watch(
        role: str | None, service: str, operation: str, parameters: Mapping[str, Any]
    ) -> None:
        if role not in ROLES:
            return
        for action, resource in needed(service, operation, parameters):
            call = AwsCall(role, action, resource)
            if call in known:
                continue
            if record is None:
                raise UnlistedCall(
                    f"{' '.join(call)} is not in {LIST.name}: add it there and to the role in "
                    "deploy/cloudformation/service.yaml"
                )
            known.add(call)
            with record.open("a", encoding="utf-8") as file:
                file.write(" ".join(call) + "\n")

    async def make_api_call(client: Any, operation: str, parameters: Mapping[str, Any]) -> Any:
        service = client.meta.service_model.service_name
        watch(caller(sys._getframe()), service, operation, parameters)  # noqa: SLF001
        return await real_call(client, operation, parameters)

    real_endpoint_call = Endpoint.call

    async def endpoint_call(
        endpoint: Endpoint, name: str, parameters: dict[str, Any], *parser: WireParser
    ) -> dict[str, Any]:
        watch(caller(sys._getframe()), "dynamodb", name, parameters)  # noqa: SLF001
        return await real_endpoint_call(endpoint, name, parameters, *parser)

    real_create_task = asyncio.BaseEventLoop.create_task

    def create_task(
        loop: asyncio.BaseEventLoop,
        coro: Any,
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> "asyncio.Task[Any]":
        starter = caller(sys._getframe())  # noqa: SLF001
        context = copy_context() if context is None else context
        if starter is not None:
            context.run(_starter.set, starter)
        return real_create_task(loop, coro, name=name, context=context)

    _watch_presigning(watch)
    AioBaseClient._make_api_call = make_api_call  # noqa: SLF001
    Endpoint.call = endpoint_call  # type: ignore[method-assign, assignment]
    asyncio.BaseEventLoop.create_task = create_task  # type: ignore[method-assign, assignment]


def _watch_presigning(watch: Callable[[str | None, str, str, Mapping[str, Any]], None]) -> None:
    real_presign = ObjectStore.presign_put

    async def presign_put(
        store: ObjectStore, key: str, expires_s: int, size: int, sha256_hex: str
    ) -> str:
        watch(caller(sys._getframe()), "s3", "PresignedPut", {})  # noqa: SLF001
        return await real_presign(store, key, expires_s, size, sha256_hex)

    ObjectStore.presign_put = presign_put  # type: ignore[method-assign, assignment]


def main(directory: str) -> None:
    """Writes the list anew from what a run recorded."""
    lines = {
        line for path in Path(directory).glob("*.txt") for line in path.read_text().splitlines()
    }
    head = "# role, action, table or table/index or bucket; made by `make aws-calls`\n"
    LIST.write_text(head + "".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
