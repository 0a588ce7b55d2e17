"""What the endpoint of operations on items sends, held against the client whose place it takes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiobotocore.awsrequest import AioAWSResponse
from botocore.awsrequest import AWSPreparedRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError

from core.aws import client_config, new_session, open_client
from core.dynamo.endpoint import Endpoint
from core.settings import Aws, Settings

KEY = {"TableName": "t", "Key": {"id": {"S": "é"}}}
REFUSED = json.dumps({"__type": "com.amazonaws#ValidationException", "message": "no"}).encode()
THROTTLED = json.dumps({"__type": "x#ThrottlingException"}).encode()


class Arrived:
    """The part of an HTTP response that is read later."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        """The body."""
        return self._body


class Connections:
    """Stands in for a client's connections: records requests, and answers as it is told to."""

    def __init__(self, *replies: tuple[int, bytes]) -> None:
        self._replies = list(replies)
        self.requests: list[AWSPreparedRequest] = []

    async def send(self, request: AWSPreparedRequest) -> AioAWSResponse:
        """The next reply, or an empty one."""
        self.requests.append(request)
        status, body = self._replies.pop(0) if self._replies else (200, b"{}")
        return AioAWSResponse(request.url, status, {"x-amzn-requestid": "ID"}, Arrived(body))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait before a retry: botocore draws it from 0 to 2 s."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


@asynccontextmanager
async def opened(connections: Connections, **aws: Any) -> AsyncIterator[tuple[Endpoint, Any]]:
    """An endpoint, and the client it is of."""
    settings = Settings(aws=Aws(**aws))
    config, url = client_config(settings), settings.aws.endpoint_url
    async with open_client(new_session(), "dynamodb", config, url) as client:
        client._endpoint.http_session.send = connections.send  # noqa: SLF001
        yield Endpoint(client), client


def sent(request: AWSPreparedRequest) -> dict[str, str]:
    """The headers of a request, names in lower case, as text."""
    return {
        name.lower(): value.decode() if isinstance(value, bytes) else value
        for name, value in request.headers.items()
    }


@pytest.mark.parametrize("token", [None, "a-session-token"])
@pytest.mark.parametrize(
    ("aws", "environment"),
    [
        ({"region": "eu-central-1"}, {}),
        ({"region": "cn-north-1"}, {}),
        ({"region": "us-gov-west-1"}, {"AWS_USE_FIPS_ENDPOINT": "true"}),
        ({"region": "us-east-2"}, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}),
        ({"region": "us-east-2"}, {"AWS_ENDPOINT_URL_DYNAMODB": "http://gateway:4000/path/"}),
        ({"region": "us-east-2"}, {"AWS_LAMBDA_FUNCTION_NAME": "f", "_X_AMZN_TRACE_ID": "Root=1"}),
        ({"region": "us-east-2", "endpoint_url": "http://127.0.0.1:4000"}, {}),
    ],
)
async def test_it_sends_what_the_client_sends(
    aws: dict[str, str],
    environment: dict[str, str],
    token: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Address, headers, signature's scope and body, by botocore's rules of addresses.

    But for the headers `amz-sdk-*`, in which botocore describes its own attempts.
    """
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    connections = Connections()
    async with opened(connections, **aws) as (endpoint, client):
        await endpoint.call("GetItem", dict(KEY))
        await client.get_item(**KEY)
    ours, stock = connections.requests
    assert (ours.url, ours.method) == (stock.url, stock.method)
    assert json.loads(ours.body) == json.loads(stock.body)
    headers, expected = sent(ours), sent(stock)
    host = headers.pop("host")
    assert host in ours.url
    for name in ("amz-sdk-invocation-id", "amz-sdk-request", "content-length", "x-amz-date"):
        expected.pop(name)
    headers.pop("x-amz-date")
    scopes = [each.pop("authorization").split(",")[0] for each in (headers, expected)]
    assert scopes[0] == scopes[1]
    assert headers == expected


async def test_each_attempt_is_signed_with_the_credentials_of_its_time() -> None:
    """Those of a role are replaced every hour, perhaps between two attempts."""

    class Rotating:
        count = 0

        async def get_frozen_credentials(self) -> ReadOnlyCredentials:
            self.count += 1
            return ReadOnlyCredentials(f"AKID{self.count}", "secret", f"token{self.count}")

    connections = Connections((500, b"{}"))
    async with opened(connections) as (_, client):
        client._request_signer._credentials = Rotating()  # noqa: SLF001
        await Endpoint(client).call("GetItem", dict(KEY))
    first, second = map(sent, connections.requests)
    assert "Credential=AKID1/" in first["authorization"]
    assert "Credential=AKID2/" in second["authorization"]
    assert (first["x-amz-security-token"], second["x-amz-security-token"]) == ("token1", "token2")


async def test_the_attempts_of_a_transaction_are_one_transaction() -> None:
    """They carry one token, as botocore would give them; another call has another."""
    connections = Connections((500, b"{}"))
    async with opened(connections) as (endpoint, _):
        await endpoint.call("TransactWriteItems", {"TransactItems": []})
        await endpoint.call("TransactWriteItems", {"TransactItems": []})
        await endpoint.call("TransactWriteItems", {"ClientRequestToken": "own"})
    tokens = [json.loads(each.body)["ClientRequestToken"] for each in connections.requests]
    assert tokens[0] == tokens[1] != tokens[2]
    assert len(tokens[0]) == 36
    assert tokens[3] == "own"


async def test_retries_end_where_very_many_fail() -> None:
    """The quota of retries is botocore's: it runs out, and comes back as calls succeed."""
    connections = Connections(*[(400, THROTTLED)] * 151)
    async with opened(connections) as (endpoint, _):
        for _ in range(50):
            with pytest.raises(ClientError, match="Throttling"):
                await endpoint.call("GetItem", dict(KEY))
        assert len(connections.requests) == 150
        with pytest.raises(ClientError, match="Throttling"):
            await endpoint.call("GetItem", dict(KEY))
        assert len(connections.requests) == 151
        for _ in range(5):
            await endpoint.call("GetItem", dict(KEY))
        connections._replies[:] = [(400, THROTTLED)]  # noqa: SLF001
        reply = await endpoint.call("GetItem", dict(KEY))
        assert reply["ResponseMetadata"]["RetryAttempts"] == 1


async def test_an_error_is_the_one_that_the_client_raises() -> None:
    """The same class, with the same reply in it."""
    connections = Connections((400, REFUSED), (400, REFUSED))
    async with opened(connections) as (endpoint, client):
        with pytest.raises(ClientError) as ours:
            await endpoint.call("GetItem", dict(KEY))
        with pytest.raises(ClientError) as stock:
            await client.get_item(**KEY)
    assert type(ours.value) is type(stock.value)
    assert str(ours.value) == str(stock.value)
    assert ours.value.response == stock.value.response
