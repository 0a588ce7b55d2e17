"""The check before the embedded AWS, by requests that botocore signs."""

from collections.abc import MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
from botocore import auth
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from deploy.local.gateway import Gateway

HOST = "127.0.0.1:4599"
OWN = Credentials("K9OWN", "own secret")
TARGET = {"X-Amz-Target": "DynamoDB_20120810.ListTables"}


class _Aws:
    """An ASGI application in ministack's place: notes what it is asked, and lets all read it."""

    def __init__(self) -> None:
        self.asked: list[tuple[MutableMapping[str, Any], bytes]] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        self.asked.append((scope, body))
        headers = [(b"access-control-allow-origin", b"*"), (b"x-amzn-requestid", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"passed"})


async def _ask(
    aws: _Aws, request: AWSRequest, *more: tuple[bytes, bytes], body: bytes | None = None
) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers of the answer to a request, with headers more than it signed."""
    parts = urlsplit(request.url)
    content = (request.data or b"") if body is None else body
    half = len(content) // 2
    messages = [
        {"type": "http.request", "body": content[:half], "more_body": True},
        {"type": "http.request", "body": content[half:], "more_body": False},
    ]
    pairs = {"Host": parts.netloc, **dict(request.headers.items())}
    scope = {
        "type": "http",
        "method": request.method,
        "path": parts.path,
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "headers": [(k.lower().encode(), v.encode()) for k, v in pairs.items()] + list(more),
    }
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    gateway = Gateway(aws, frozenset({HOST}), OWN.access_key, OWN.secret_key)
    await gateway(scope, receive, send)
    return sent[0]["status"], sent[0]["headers"]


def _tables(host: str = HOST, credentials: Credentials = OWN, body: bytes = b"{}") -> AWSRequest:
    request = AWSRequest("POST", f"http://{host}/", headers=dict(TARGET), data=body)
    SigV4Auth(credentials, "dynamodb", "us-east-1").add_auth(request)
    return request


def _url(service: str = "s3", expires: int = 60) -> AWSRequest:
    request = AWSRequest("GET", f"http://{HOST}/b/a%20b")
    S3SigV4QueryAuth(OWN, service, "us-east-1", expires=expires).add_auth(request)
    return AWSRequest("GET", request.url)


async def test_what_its_owner_signed_passes_whole() -> None:
    """A call of DynamoDB, an object of S3 whose body is not hashed, and a presigned URL."""
    aws = _Aws()
    assert (await _ask(aws, _tables(body=b'{"Limit": 5}')))[0] == 200
    headers = {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}
    put = AWSRequest("PUT", f"http://{HOST}/b/a%20b%2Bc", headers=headers, data=b"rows")
    S3SigV4Auth(OWN, "s3", "us-east-1").add_auth(put)
    assert (await _ask(aws, put))[0] == 200
    assert (await _ask(aws, _url()))[0] == 200
    assert [body for _, body in aws.asked] == [b'{"Limit": 5}', b"rows", b""]


async def test_no_answer_is_for_pages() -> None:
    """The emulator's wildcard does not leave the gateway."""
    _, headers = await _ask(_Aws(), _tables())
    assert [name for name, _ in headers] == [b"x-amzn-requestid"]


@pytest.mark.parametrize(
    "more",
    [
        (b"origin", b"http://evil.example"),
        (b"origin", b"null"),
        (b"host", HOST.encode()),
        (b"host", b"evil.example"),
        (b"authorization", b"Bearer x"),
        (b"x-amz-target", b"DynamoDB_20120810.DeleteTable"),
        (b"x-amz-security-token", b"x"),
    ],
)
async def test_one_header_more_is_refused(more: tuple[bytes, bytes]) -> None:
    """A page's origin, a second host or signature, and what the signature does not cover."""
    aws = _Aws()
    status, headers = await _ask(aws, _tables(), more)
    assert status == 403
    assert not [name for name, _ in headers if name.startswith(b"access-control-")]
    assert aws.asked == []


@pytest.mark.parametrize(
    "request_",
    [
        _tables(host="evil.example:4599"),
        _tables(host="127.0.0.1"),
        _tables(credentials=Credentials("K9OWN", "another secret")),
        _tables(credentials=Credentials("test", "own secret")),
        _tables(credentials=Credentials("000000000000", "own secret")),
        AWSRequest("POST", f"http://{HOST}/", headers=dict(TARGET), data=b"{}"),
        AWSRequest("GET", f"http://{HOST}/_ministack/health"),
        AWSRequest("POST", f"http://{HOST}/_ministack/ready"),
        AWSRequest("GET", f"http://{HOST}/_ministack/ready/../config"),
        AWSRequest("GET", f"http://{HOST}/bucket/x/.well-known/jwks.json"),
        AWSRequest("OPTIONS", f"http://{HOST}/"),
        _url(service="dynamodb"),
        _url(expires=8 * 24 * 3600),
        _url(expires=-5),
    ],
)
async def test_a_stranger_is_refused(request_: AWSRequest) -> None:
    """By another name, another key, no key, or another use of a signed URL."""
    aws = _Aws()
    assert (await _ask(aws, request_))[0] == 403
    assert aws.asked == []


async def test_a_signature_holds_for_what_it_was_made() -> None:
    """Not for another body, method, path, or time."""
    aws = _Aws()
    assert (await _ask(aws, _tables(), body=b'{"Limit": 1}'))[0] == 403
    url = urlsplit(_url().url)
    for method, path in (("PUT", url.path), ("GET", "/b/other")):
        changed = AWSRequest(method, f"http://{HOST}{path}?{url.query}")
        assert (await _ask(aws, changed))[0] == 403
    for hours in (-1, 1):
        then = datetime.now(UTC) + timedelta(hours=hours)
        with mock.patch.object(auth, "get_current_datetime", lambda then=then: then):
            other = _tables()
        assert (await _ask(aws, other))[0] == 403
    assert aws.asked == []


async def test_a_presigned_url_is_no_other_call() -> None:
    """A form's label on it is dropped: with it the body would name another action."""
    aws = _Aws()
    form = (b"content-type", b"application/x-www-form-urlencoded")
    asked = (b"range", b"bytes=0-1")
    status, _ = await _ask(aws, _url(), form, asked, body=b"Action=ListUsers")
    assert status == 200
    names = {name for name, _ in aws.asked[0][0]["headers"]}
    assert names == {b"host", b"range"}


async def test_public_keys_are_read_without_a_key_and_nothing_else() -> None:
    """What else such a request carries does not arrive."""
    aws = _Aws()
    path = "/us-east-1_AbC123/.well-known/jwks.json"
    request = AWSRequest("GET", f"http://{HOST}{path}?X-Amz-Target=x", headers=dict(TARGET))
    status, _ = await _ask(aws, request, body=b"{}")
    scope, body = aws.asked[0]
    assert (status, scope["query_string"], body) == (200, b"", b"")
    assert scope["headers"] == [(b"host", HOST.encode())]


async def test_a_large_body_is_not_read_to_its_end() -> None:
    """Whoever knows the key's name makes the gateway hold no more than a call can need."""
    aws = _Aws()
    body = bytes(33 * 1024 * 1024)
    assert (await _ask(aws, _tables(body=body)))[0] == 403
    assert aws.asked == []


async def test_a_web_socket_is_closed() -> None:
    """No service of K9's has one."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    gateway = Gateway(_Aws(), frozenset({HOST}), "K9OWN", "own secret")
    await gateway({"type": "websocket", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
