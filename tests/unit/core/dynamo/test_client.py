"""The client against a server that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError

from core import aws
from core.dynamo.client import Dynamo, open_dynamo
from core.dynamo.wire import AttributeValue
from core.errors import Busy, Rejected, TableMissing, Unavailable
from core.settings import Aws, Settings
from tests.scripted import CLOSE, HANG, ScriptedServer, answer

CUT = answer(200, b"{", length=100)


def reply(content: Any, status: int = 200) -> bytes:
    """A reply of DynamoDB's; bytes are its body as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return answer(status, body, headers="x-amzn-requestid: ID\r\n")


def failure(status: int, code: str) -> bytes:
    """An error as DynamoDB words it."""
    return reply({"__type": f"com.amazonaws.dynamodb#{code}", "message": "m"}, status)


@asynccontextmanager
async def talking_to(server: ScriptedServer, **aws: Any) -> AsyncIterator[Dynamo]:
    """A client of that server."""
    async with (
        server.listening() as url,
        open_dynamo(Settings(aws=Aws(endpoint_url=url, **aws))) as dynamo,
    ):
        yield dynamo


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait before a retry: botocore draws it from 0 to 2 s."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


async def get(dynamo: Dynamo) -> dict[str, Any]:
    """Any call."""
    return await dynamo.call("get_item", TableName="t", Key={"id": {"S": "a"}})


GOOD = reply({"Item": {"id": {"S": "a"}}})
TROUBLES = {
    "throttled": failure(400, "ProvisionedThroughputExceededException"),
    "500": failure(500, "InternalServerError"),
    "503 without a body": reply(b"", 503),
    "body cut": CUT,
    "closed": CLOSE,
    "half a JSON": reply(b'{"Item": {"id"'),
    "no JSON": reply(b"<html>"),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_what_passes_is_tried_again(trouble: bytes) -> None:
    """Two failures of a passing kind, then an answer: the caller sees the answer."""
    server = ScriptedServer(trouble, trouble, GOOD)
    async with talking_to(server) as dynamo:
        got = await get(dynamo)
    assert got["Item"] == {"id": AttributeValue(S="a")}
    assert got["ResponseMetadata"]["RetryAttempts"] == 2
    assert len(server.requests) == 3


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_what_lasts_is_unavailable(trouble: bytes) -> None:
    """After as many tries as the settings say, the error is one that may pass later."""
    server = ScriptedServer(trouble)
    async with talking_to(server) as dynamo:
        with pytest.raises(Unavailable) as caught:
            await get(dynamo)
    assert len(server.requests) == 3
    assert "127.0.0.1" not in str(caught.value)


async def test_the_deadline_is_over_all_tries() -> None:
    """A server that never answers costs the deadline, not the tries' timeouts in sum."""
    server = ScriptedServer(HANG)
    async with talking_to(server, deadline_s=0.2) as dynamo:
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(Unavailable, match=r"get_item within 0\.2 s") as caught:
            await get(dynamo)
        assert loop.time() - start < 2
    assert not isinstance(caught.value, Busy)


THROTTLED = failure(400, "ProvisionedThroughputExceededException")


async def test_throttling_is_waited_out_where_nobody_waits() -> None:
    """Beyond botocore's three tries, with a client that is told to."""
    server = ScriptedServer(*[THROTTLED] * 7, GOOD)
    async with talking_to(server, waits_out_throttling=True, deadline_s=20.0) as dynamo:
        assert (await get(dynamo))["Item"]
    assert len(server.requests) == 8


@pytest.mark.parametrize("patient", [True, False])
async def test_throttling_that_lasts_is_busy(patient: bool) -> None:  # noqa: FBT001
    """Not before the deadline for who is told to wait, and it says that it was turned away."""
    server = ScriptedServer(THROTTLED)
    async with talking_to(server, waits_out_throttling=patient, deadline_s=1.0) as dynamo:
        with pytest.raises(Busy, match="get_item"):
            await get(dynamo)
    assert (len(server.requests) > 3) is patient


async def test_what_is_out_of_reach_is_not_waited_for() -> None:
    """A client that waits out throttling gives up on a DynamoDB that is gone as any other."""
    server = ScriptedServer(CLOSE)
    async with talking_to(server, waits_out_throttling=True, deadline_s=20.0) as dynamo:
        with pytest.raises(Unavailable, match="could not be reached"):
            await get(dynamo)
    assert len(server.requests) == 3


async def test_a_call_that_hangs_while_others_are_answered() -> None:
    """DynamoDB is there, then, and busy."""
    server = ScriptedServer(HANG, GOOD)
    async with talking_to(server, deadline_s=0.5) as dynamo:
        hanging = asyncio.create_task(get(dynamo))
        await server.asked.wait()
        assert (await get(dynamo))["Item"]
        with pytest.raises(Busy, match=r"within 0\.5 s"):
            await hanging


async def test_a_read_timeout_is_tried_again() -> None:
    """A try that gets no answer in time gives way to the next."""
    server = ScriptedServer(HANG, GOOD)
    async with talking_to(server, read_timeout_s=0.2) as dynamo:
        assert (await get(dynamo))["Item"]


async def test_nobody_listens() -> None:
    """Without a server, opening works and a call is unavailable, without its address."""
    async with open_dynamo(Settings(aws=Aws(endpoint_url="http://127.0.0.1:1"))) as dynamo:
        with pytest.raises(Unavailable, match="could not be reached") as caught:
            await get(dynamo)
    assert "127.0.0.1" not in str(caught.value)


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials, the error says what to set; nothing is sent."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    server = ScriptedServer(GOOD)
    async with talking_to(server) as dynamo:
        with pytest.raises(Unavailable, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            await get(dynamo)
    assert server.requests == []


async def test_half_of_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key without its secret is as good as none."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(Unavailable, match="AWS_SECRET_ACCESS_KEY"):
        async with talking_to(ScriptedServer(GOOD)):
            pass


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException"])
async def test_credentials_that_are_refused(code: str) -> None:
    """What an operator must mend is told as such, and not tried again."""
    server = ScriptedServer(failure(400, code))
    async with talking_to(server) as dynamo:
        with pytest.raises(Unavailable, match=f"refused K9's AWS credentials.*{code}"):
            await get(dynamo)
    assert len(server.requests) == 1


async def test_our_own_mistakes_pass_through() -> None:
    """An error that no state explains is a bug of ours, and is not dressed up."""
    server = ScriptedServer(failure(400, "UnknownOperationException"))
    async with talking_to(server) as dynamo:
        with pytest.raises(ClientError, match="UnknownOperationException"):
            await get(dynamo)


@pytest.mark.parametrize(
    "answered",
    [
        failure(400, "ResourceNotFoundException"),
        failure(400, "AccessDeniedException"),
        failure(400, "ThrottlingException"),
        failure(500, "InternalServerError"),
        CLOSE,
        HANG,
    ],
)
async def test_what_a_caller_is_shown_names_nothing_of_the_inside(answered: bytes) -> None:
    """No table, no operation and no code; the error's own text has what an operator needs."""
    async with talking_to(ScriptedServer(answered), deadline_s=0.5) as dynamo:
        with pytest.raises(Unavailable) as failed:
            await dynamo.call("get_item", TableName="k9-t", Key={"id": {"S": "a"}})
    for name in ("k9-t", "get_item", "Exception", "Error", "credentials"):
        assert name not in failed.value.public
    assert "DynamoDB" in failed.value.public


async def test_a_request_that_is_not_valid_is_rejected() -> None:
    """Once, with DynamoDB's own reason: an item may be too large, which is one row's matter."""
    server = ScriptedServer(failure(400, "ValidationException"))
    async with talking_to(server) as dynamo:
        with pytest.raises(Rejected, match="DynamoDB rejected get_item"):
            await get(dynamo)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("operation", "parameters", "named"),
    [
        ("query", {"TableName": "t", "IndexName": "i"}, "table t or index i"),
        ("batch_write_item", {"RequestItems": {"u": [], "t": []}}, "table among t, u"),
        (
            "transact_write_items",
            {"TransactItems": [{"Put": {"TableName": "t", "Item": {}}}]},
            "table among t",
        ),
    ],
)
async def test_a_missing_table_is_named(
    operation: str, parameters: dict[str, Any], named: str
) -> None:
    """However a call names its tables, the error does."""
    server = ScriptedServer(failure(400, "ResourceNotFoundException"))
    async with talking_to(server) as dynamo:
        with pytest.raises(TableMissing, match=f"{named}: `k9 tables create`"):
            await dynamo.call(operation, **parameters)


async def test_a_call_can_be_cancelled() -> None:
    """Cancellation is not taken for the deadline, and the connection is given back."""
    server = ScriptedServer(HANG, GOOD)
    async with talking_to(server, pool_connections=1) as dynamo:
        task = asyncio.create_task(get(dynamo))
        await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await get(dynamo))["Item"]


async def test_opening_leaves_the_event_loop_free() -> None:
    """While the first client of a process is made, the event loop goes round many times."""
    aws._models.cache_clear()  # noqa: SLF001 - which another test has filled
    rounds = 0

    async def watch() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0.001)
            rounds += 1

    watcher = asyncio.create_task(watch())
    async with open_dynamo(Settings()):
        watcher.cancel()
    assert rounds > 5
